"""What docs/evaluation.md shows is what the command does and what the benchmarks are."""

import re

import datasets
import pytest

from hawaii.__main__ import build_parser
from hawaii.evaluation.paper.benchmarks import BENCHMARKS, DATA_SETS
from hawaii.evaluation.paper.results import MME_POINTS
from hawaii.evaluation.paper.task_files import check_data_folder
from hawaii.tests.documents import blocks, read
from hawaii.tests.evaluation.stand_ins import any_answers, save_stand_ins


DOCUMENT = read("docs/evaluation.md")


@pytest.mark.parametrize("line", [line for block in blocks(DOCUMENT, "bash") for line in block.splitlines()])
def test_every_command_is_one_that_the_parser_knows(line):
    program, *words = line.split()
    if program == "hawaii":
        assert build_parser().parse_args(words).command == words[0]
    else:
        assert line == "pip install lmms-eval==0.7.3" and "lmms-eval==0.7.3" in read("setup.cfg")


def test_the_table_is_of_the_benchmarks():
    rows = re.findall(r"^\| ([\w-]+) \| `(\w+)` \| (\w+) \|", DOCUMENT, flags=re.MULTILINE)
    assert rows == [(benchmark.column, task, benchmark.split) for task, benchmark in BENCHMARKS.items()]
    assert f"percent of {MME_POINTS} points" in DOCUMENT


def test_the_lines_that_save_the_data_leave_what_the_command_reads(tmp_path, monkeypatch):
    hub = save_stand_ins(tmp_path / "hub", {task: any_answers(task) for task in BENCHMARKS})
    names = {place: name for name, place in DATA_SETS.items()}

    def load_dataset(repository, config, split):
        return datasets.load_from_disk(hub / names[repository, config, split])[split]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.chdir(tmp_path)
    (code,) = blocks(DOCUMENT, "python")
    exec(code, {})
    check_data_folder(list(BENCHMARKS), tmp_path / "data" / "benchmarks")
