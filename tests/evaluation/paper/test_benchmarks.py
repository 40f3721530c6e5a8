"""Tests of the table of benchmarks and the task files against those of lmms-eval."""

from pathlib import Path

import lmms_eval
import pytest
from lmms_eval.utils import load_yaml_config

from hawaii.evaluation.paper.benchmarks import BENCHMARKS, DATA_SETS
from hawaii.evaluation.paper.task_files import TASKS, write_task_files


PACKAGED = Path(lmms_eval.__file__).parent / "tasks"
SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."


@pytest.fixture(scope="module")
def merged(tmp_path_factory):
    """Each task as lmms-eval reads it."""
    scratch = tmp_path_factory.mktemp("tasks")
    folder = write_task_files(list(BENCHMARKS), {}, None, scratch)
    return {name: load_yaml_config(str(folder / f"{name}.yaml")) for name in BENCHMARKS}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_data_is_what_lmms_evals_own_file_names(name):
    config = load_yaml_config(str(PACKAGED / BENCHMARKS[name].packaged))
    assert (config["dataset_path"], config.get("dataset_name"), config["test_split"]) == DATA_SETS[name]
    assert config["task"] == name


def test_there_is_a_file_for_each_benchmark_and_no_other():
    assert {path.stem for path in (TASKS / "paper").glob("*.yaml")} == set(BENCHMARKS)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_answers_are_greedy_and_short_without_a_delimiter(merged, name):
    arguments = merged[name]["generation_kwargs"]
    assert arguments["max_new_tokens"] in (16, 32, 128)
    assert (arguments["do_sample"], arguments["temperature"], arguments["num_beams"]) == (False, 0, 1)
    # Left out, lmms-eval would fill in the delimiter of few-shot prompts.
    assert arguments["until"] == []
    assert not merged[name].get("model_specific_generation_kwargs")


@pytest.mark.parametrize("name", BENCHMARKS)
def test_public_data_needs_no_token(merged, name):
    # `token: true` fails where nobody has logged in.
    assert merged[name]["dataset_kwargs"] == {}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_papers_metric_is_computed_without_a_submission(merged, name):
    metrics = {metric["metric"] for metric in merged[name]["metric_list"]}
    assert BENCHMARKS[name].metric in metrics and "submission" not in metrics


@pytest.mark.parametrize("name", BENCHMARKS)
def test_images_come_before_the_text(merged, name):
    # Without a chat form of its own, a question's images are put before its text, as LLaVA saw them.
    assert merged[name].get("doc_to_messages") is None


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        ("textvqa_val", SHORT),
        ("vizwiz_vqa_val", "\nWhen the provided information is insufficient, respond with 'Unanswerable'." + SHORT),
        ("gqa", SHORT),
        ("scienceqa_img", LETTER),
        ("pope", SHORT),
        ("mme", SHORT),
        ("mmbench_en_dev_static", LETTER),
        ("ai2d", LETTER),
    ],
)
def test_prompts_end_as_llavas(merged, name, ending):
    assert merged[name]["lmms_eval_specific_kwargs"]["default"]["post_prompt"] == ending
    assert merged[name]["lmms_eval_specific_kwargs"]["default"]["pre_prompt"] == ""


def test_the_prompt_of_textvqa_includes_ocr_tokens(merged):
    assert merged["textvqa_val"]["lmms_eval_specific_kwargs"]["default"]["ocr"] is True
