"""What counts as a right answer, and that the metric loads by its folder without a network and leaves nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hawaii.metrics.answer_accuracy import answer_accuracy
from hawaii.metrics.answer_accuracy.answer_accuracy import AnswerAccuracy, is_right, mean_by_type


@pytest.mark.parametrize("answer", ["red", " Red", "RED.", "red \n", "red ."])
def test_whitespace_case_and_a_period_are_ignored(answer):
    assert is_right(answer, "red") and is_right("red", answer)


@pytest.mark.parametrize("answer", ["", "blue", "red red", "it is red", "red..", "re", "red, blue", "reddish", "r ed"])
def test_anything_else_is_wrong(answer):
    assert not is_right(answer, "red")


ANSWERS = {"predictions": ["Red.", "two", "blue"], "references": ["red", "three", "blue"]}


def test_accuracy_is_the_fraction_of_right_answers():
    assert AnswerAccuracy().compute(**ANSWERS) == {"accuracy": 2 / 3}


def test_each_type_has_an_accuracy():
    result = AnswerAccuracy().compute(**ANSWERS, question_types=["number", "number", "color"])
    assert result == {"accuracy": 2 / 3, "accuracy_by_type": {"color": 1.0, "number": 0.5}}
    assert list(result["accuracy_by_type"]) == ["color", "number"]


def test_answers_can_be_added_one_by_one():
    metric = AnswerAccuracy()
    metric.add(prediction="red", reference="red")
    metric.add_batch(predictions=["red"], references=["blue"])
    assert metric.compute(question_types=["a", "b"]) == {
        "accuracy": 0.5,
        "accuracy_by_type": {"a": 1.0, "b": 0.0},
    }


def test_a_wrong_number_of_types_is_an_error():
    with pytest.raises(ValueError, match="2 question_types for 3 answers; give one for each"):
        AnswerAccuracy().compute(**ANSWERS, question_types=["a", "b"])


def test_no_answers_have_no_accuracy():
    with pytest.raises(ValueError, match="There are no answers to score"):
        AnswerAccuracy().compute(predictions=[], references=[])


def test_fractional_scores_are_averaged_by_type():
    assert mean_by_type([0.5, 1.0, 0.0], ["b", "a", "b"]) == {"a": 1.0, "b": 0.25}


def files(folder):
    return {path.name for path in folder.rglob("*") if path.is_file() and path.suffix not in (".py", ".json")}


def test_the_folder_loads_offline_and_computing_writes_nothing(tmp_path):
    program = (
        "import json, sys, evaluate\n"
        "metric = evaluate.load(sys.argv[1])\n"
        "print(json.dumps(metric.compute(predictions=['Red.'], references=['red'], question_types=['color'])))"
    )
    folder = Path(answer_accuracy.__file__).parent
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.stdout == '{"accuracy": 1.0, "accuracy_by_type": {"color": 1.0}}\n', done.stderr
    assert files(tmp_path) <= {"answer_accuracy.lock"}  # of the copy that `load` makes of the file


def test_an_import_needs_no_cache_folder(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    metric = AnswerAccuracy(cache_dir=str(tmp_path / "file" / "cache"))  # where no folder can be made
    assert metric.compute(**ANSWERS) == {"accuracy": 2 / 3}
