"""Tests of the commands and the table in docs/evaluation.md."""

import re
from importlib.metadata import entry_points
from inspect import signature

import datasets
import pytest

from hawaii.__main__ import build_parser
from hawaii.evaluation.lmms.model import Hawaii
from hawaii.evaluation.lmms.plugin import hawaii
from hawaii.evaluation.paper.benchmarks import BENCHMARKS, DATA_SETS
from hawaii.evaluation.paper.results import MME_POINTS
from hawaii.evaluation.paper.task_files import check_data_folder
from hawaii.tests.documents import blocks, read
from hawaii.tests.evaluation.stand_ins import any_answers, save_stand_ins


DOCUMENT = read("docs/evaluation.md")


@pytest.mark.parametrize("line", [line for block in blocks(DOCUMENT, "bash") for line in block.splitlines()])
def test_every_command_can_be_parsed(line):
    program, *words = line.split()
    if program == "hawaii":
        assert build_parser().parse_args(words).command == words[0]
    elif program == "python":
        (plugin,) = entry_points(group="lmms_eval.models", name=words[words.index("--model") + 1])
        assert words[:2] == ["-m", "lmms_eval"] and plugin.load() is hawaii
        pairs = words[words.index("--model_args") + 1].split(",")
        assert {pair.partition("=")[0] for pair in pairs} <= signature(Hawaii).parameters.keys()
    else:
        assert line == "pip install lmms-eval==0.7.3" and "lmms-eval==0.7.3" in read("setup.cfg")


def test_the_table_lists_the_benchmarks():
    rows = re.findall(r"^\| ([\w-]+) \| `(\w+)` \| (\w+) \|", DOCUMENT, flags=re.MULTILINE)
    assert rows == [(benchmark.column, task, benchmark.split) for task, benchmark in BENCHMARKS.items()]
    assert f"percent of {MME_POINTS} points" in DOCUMENT


def test_the_saved_data_passes_the_checks_of_the_command(tmp_path, monkeypatch):
    hub = save_stand_ins(tmp_path / "hub", {task: any_answers(task) for task in BENCHMARKS})
    names = {place: name for name, place in DATA_SETS.items()}

    def load_dataset(repository, config, split):
        return datasets.load_from_disk(hub / names[repository, config, split])[split]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.chdir(tmp_path)
    (code,) = blocks(DOCUMENT, "python")
    exec(code, {})
    check_data_folder(list(BENCHMARKS), tmp_path / "data" / "benchmarks")
