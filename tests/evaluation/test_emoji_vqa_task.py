"""EmojiVQA is asked and scored as easy-VQA is, under its own name."""

from pathlib import Path

import pytest

from hawaii.evaluation import checkpoint


TASKS = Path(checkpoint.__file__).parent / "tasks"


@pytest.fixture(scope="module")
def configs():
    """Both tasks as lmms-eval reads them."""
    from lmms_eval.utils import load_yaml_config

    return {name: load_yaml_config(str(TASKS / name / f"{name}.yaml")) for name in ("easy_vqa", "emoji_vqa")}


def test_only_its_name_is_its_own(configs):
    plain = [{key: value for key, value in config.items() if not callable(value)} for config in configs.values()]
    for config in plain:
        config.pop("metric_list")
        config.pop("metadata")
    easy, emoji = plain
    assert emoji.pop("task") == "emoji_vqa" and easy.pop("task") == "easy_vqa"
    assert easy == emoji


def test_an_answer_must_be_the_very_words(configs):
    document = {"answer": "red apple", "question_type": "choice"}
    score = configs["emoji_vqa"]["process_results"]
    assert score(document, [" Red apple."])["accuracy"] == 1
    assert score(document, ["apple"])["accuracy"] == 0
    (by_type,) = (metric for metric in configs["emoji_vqa"]["metric_list"] if metric["metric"] == "accuracy_by_type")
    items = [score(document, [answer])["accuracy_by_type"] for answer in ("red apple", "fox")]
    assert by_type["aggregation"](items) == {"choice": 0.5}
