"""docs/ablations.md is correct: its commands parse, and its rows, numbers and code are those of the package."""

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest

from hawaii.__main__ import parse
from hawaii.ablation.rows import DEFAULT_ROWS, ROWS, make_recipe, read_rows, rows_of
from hawaii.tests.documents import ROOT, blocks, read
from hawaii.training.recipes.recipe import read_recipe
from hawaii.training.teachers.config import TeacherConfig


ABLATIONS = read("docs/ablations.md")


def commands_of(document):
    lines = [line for block in blocks(document, "bash") for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line) for line in lines if line.startswith("hawaii ablate")]


COMMANDS = commands_of(ABLATIONS)
EVIDENCE_COMMANDS = commands_of(read("docs/evidence.md"))


@pytest.mark.parametrize("words", [*EVIDENCE_COMMANDS, *COMMANDS], ids=lambda words: " ".join(words[2:]))
def test_each_command_names_an_existing_recipe_and_existing_rows(words):
    arguments = parse(words[1:])
    recipe = read_recipe(str(ROOT / arguments.recipe), getattr(arguments, "overrides", None), use_cpu=True)
    rows = rows_of(next(iter(recipe.stages.values())).teachers)
    if hasattr(arguments, "more_rows"):
        rows |= read_rows(ROOT / arguments.more_rows, rows, recipe.output_dir)
    assert set(getattr(arguments, "rows", DEFAULT_ROWS)) <= set(rows)
    assert recipe.eval_tasks


def test_the_command_of_table_2_evaluates_the_ten_benchmarks_of_the_paper():
    from hawaii.evaluation.paper.benchmarks import SUITES

    (words,) = (words for words in COMMANDS if "runs/table_2" in words)
    recipe = read_recipe(str(ROOT / parse(words[1:]).recipe), use_cpu=True)
    assert recipe.eval_tasks == list(SUITES["paper"])


def test_every_row_is_listed_with_its_label():
    shown = re.findall(r"^\| (\w+) \| (.+?) \|", ABLATIONS.split("## Rows")[1].split("## ")[0], flags=re.MULTILINE)
    rows = [(name, row.label) for name, row in ROWS.items()]
    alone = rows_of([TeacherConfig("owner/TEACHER")])["only_TEACHER"].label
    assert shown[1:] == [*rows, ("only_TEACHER", alone)]
    assert list(DEFAULT_ROWS) == [name for name, _ in rows[:7]]
    assert "The first seven are the default of `--rows`." in ABLATIONS


def test_all_rows_share_lambda_1_and_trainable():
    for name in ("easy_vqa", "emoji_vqa"):
        recipe = read_recipe(name, use_cpu=True)
        for row in rows_of(recipe.stages["pretrain"].teachers).values():
            for stage in make_recipe(recipe, row, 0, Path("run")).stages.values():
                assert stage.options.lambda_1 == 10
                assert stage.training.trainable == recipe.stages[stage.name].training.trainable
                assert "projections" not in stage.training.trainable
    stages = read_recipe("hawaii_vicuna_7b", use_cpu=True).stages
    assert all("projections" in stage.training.trainable for stage in stages.values())
    assert "`lambda_1`, the weight of the distillation, is 10 for all rows" in ABLATIONS


def test_the_stretch_of_the_seeds_is_the_documented_one():
    import numpy as np

    from hawaii.metrics.paired_bootstrap.paired_bootstrap import _draws_of_seeds

    for num_seeds, stretch in ((3, 2.7), (5, 1.6)):
        assert f"{stretch} " in ABLATIONS
        differences = np.eye(num_seeds)[0]
        drawn = _draws_of_seeds(differences, 20_000, 0.95, np.random.default_rng(0))
        plain = np.sqrt(differences.var() / num_seeds)  # deviation of the mean of a draw with replacement
        assert drawn.std() / plain == pytest.approx(stretch, abs=0.06)


def test_the_example_of_the_paired_bootstrap_prints_the_difference(monkeypatch):
    monkeypatch.chdir(ROOT)
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(blocks(ABLATIONS, "python")[0], {})
    assert output.getvalue() == "0.5\n"
