"""Tests of prompts and scores of easy-VQA."""

import importlib.util
from pathlib import Path

import pytest
from PIL import Image

from hawaii.evaluation import checkpoint


PATH = Path(checkpoint.__file__).parent / "tasks" / "easy_vqa" / "utils.py"


@pytest.fixture(scope="module")
def task():
    """The file loaded by its path outside of any package, like in lmms-eval."""
    spec = importlib.util.spec_from_file_location("utils", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def score(task, answer, truth):
    return task.process_results({"answer": truth, "question_type": "color"}, [answer])["accuracy"]


@pytest.mark.parametrize("answer", ["red", " Red", "RED.", "red \n"])
def test_whitespace_case_and_a_period_are_ignored(task, answer):
    assert score(task, answer, "red") == 1


@pytest.mark.parametrize("answer", ["", "blue", "red red", "it is red", "red..", "re", "red, blue", "reddish"])
def test_anything_else_is_wrong(task, answer):
    assert score(task, answer, "red") == 0


def test_accuracy_by_type_averages_within_each_type(task):
    questions = [("red", "red", "color"), ("blue", "red", "color"), ("yes", "yes", "yes/no shape")]
    items = [
        task.process_results({"answer": truth, "question_type": kind}, [answer])["accuracy_by_type"]
        for answer, truth, kind in questions
    ]
    assert task.accuracy_by_type(items) == {"color": 0.5, "yes/no shape": 1.0}


def test_the_image_comes_before_the_question(task):
    document = {"image": Image.new("P", (4, 4)), "question": "what color is it?"}
    ((image, text),) = (message["content"] for message in task.doc_to_messages(document))
    assert image["type"] == "image" and image["url"].mode == "RGB"
    assert text == {"type": "text", "text": "what color is it?"}
