"""Commands that a run starts, and the error that is read from its log."""

import sys
from pathlib import Path

import pytest

from hawaii.ablation.run import Run, last_line


def make_run(**changes):
    fields = {"row": "llava", "label": "LLaVA", "seed": 0, "folder": Path("a b"), "stages": ()}
    return Run(**{**fields, "tasks": ["gqa", "pope"], "options": {}, **changes})


def test_training_is_started_by_hawaii_or_a_launcher():
    words = ["-m", "hawaii", "train", "a b/recipe.yaml"]
    assert make_run().training_command() == [sys.executable, *words]
    launched = make_run(launcher="accelerate launch --num_processes 8").training_command()
    assert launched == ["accelerate", "launch", "--num_processes", "8", *words]


def test_the_evaluation_has_all_options_and_a_process_per_device():
    run = make_run(options={"limit": 3, "batch_size": 4, "data_folder": "data"})
    words = [sys.executable, "-m", "hawaii", "evaluate", "a b/hub", "--tasks", "gqa,pope", "--output_dir", "a b"]
    words += ["--limit", "3", "--batch_size", "4", "--data_folder", "data"]
    assert run.evaluation_command(1) == words
    assert run.evaluation_command(8) == [*words, "--num_processes", "8"]


@pytest.mark.parametrize(
    ("output", "last"),
    [
        ("10%\r20%\n", "20%"),
        ("hawaii train: no data.\nTraceback\nCalledProcessError\n", "hawaii train: no data."),
        ("Traceback\nKeyError: 'a'\n\n", "KeyError: 'a'"),
        ("", "nothing"),
    ],
)
def test_the_error_is_that_of_the_last_command(tmp_path, output, last):
    earlier = "\n$ hawaii train recipe.yaml\nhawaii train: an old error.\n"
    (tmp_path / "log").write_text(f"{earlier}\n$ hawaii train recipe.yaml\n{output}")
    assert last_line(tmp_path / "log") == last
