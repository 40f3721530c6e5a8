"""Tests of one process of lmms-eval: its tasks, saved questions and errors."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from tenacity import RetryError, retry, stop_after_attempt

from hawaii.evaluation.lmms import worker as lmms_worker
from hawaii.evaluation.lmms.worker import Tasks, cause_of, describe_sample, join_processes, main, write_json_lines
from hawaii.evaluation.paper.task_files import write_task_files


@pytest.fixture
def tasks(tmp_path):
    """The tasks of an evaluation of GQA."""
    return Tasks(str(write_task_files(["gqa"], {}, None, tmp_path)))


@pytest.fixture
def on_cpu(monkeypatch):
    """Restores the environment variable that a process sets."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


@pytest.fixture
def plan(tmp_path, hub_folder, on_cpu):
    """The plan of an evaluation without task files."""
    (tmp_path / "results").mkdir()
    where = {"task_folder": str(tmp_path / "tasks"), "results": str(tmp_path / "results")}
    how = {"pretrained": str(hub_folder), "dtype": "auto", "device": "cpu", "batch_size": 2, "limit": None}
    how["trust_remote_code"] = False
    return {"tasks": ["gqa"], **where, **how}


def test_tasks_of_this_package_replace_those_of_lmms_eval(tasks):
    assert tasks.manager_of("gqa") is tasks.ours
    assert tasks.ours.all_tasks == ["gqa"]


def test_other_tasks_of_lmms_eval_are_available_and_the_error_names_unknown_ones(tasks):
    assert tasks.packaged is None
    assert tasks.manager_of("chartqa") is tasks.packaged
    with pytest.raises(ValueError, match="lmms-eval has no task gqqa; .* --tasks list"):
        tasks.manager_of("gqqa")


def test_saved_data_of_a_question():
    sample = {"doc_id": 3, "doc": {"question": "?"}, "doc_hash": "0", "token_counts": [None], "accuracy": 1.0}
    sample |= {"target": 2, "arguments": ["the prompt", {}], "resps": [["B. it"]], "filtered_resps": ["B"]}
    kept = {"doc_id": 3, "accuracy": 1.0, "input": "the prompt", "target": "2", "filtered_resps": "B"}
    assert describe_sample(sample) == {**kept, "resps": [["B. it"]]}
    assert describe_sample({**sample, "resps": [["B"]]}) == kept


@pytest.mark.parametrize("name", ["image_id", "imageId", "image_source", "data_id"])
def test_the_image_name_of_a_question_is_saved(name):
    sample = {
        "doc": {"question": "?", name: 7},
        "arguments": ["?"],
        "target": "",
        "resps": [[""]],
        "filtered_resps": [""],
    }
    assert describe_sample(sample)["image_id"] == "7"


def test_each_question_is_one_line(tmp_path):
    write_json_lines(tmp_path / "rows.jsonl", [{"answer": "Ω\n"}, {"answer": "no"}])
    lines = (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["answer"] for line in lines] == ["Ω\n", "no"]


def test_the_cause_of_a_retried_error_is_the_original_one():
    @retry(stop=stop_after_attempt(2))
    def fail():
        raise ValueError("no such column")

    with pytest.raises(RetryError) as raised:
        fail()
    assert str(cause_of(raised.value)) == "no such column"
    assert cause_of(error := ValueError("plain")) is error


def test_an_error_is_saved_for_the_parent_and_ends_the_process(plan, monkeypatch):
    def fail(name, manager, model, plan):
        raise MemoryError("too large")

    monkeypatch.setattr(lmms_worker, "run_task", fail)
    monkeypatch.setattr(lmms_worker, "Tasks", lambda folder: SimpleNamespace(manager_of=lambda name: None))
    with pytest.raises(MemoryError):
        main(plan)
    error = json.loads((Path(plan["results"]) / "error_0.json").read_text())
    assert error == {"task": "gqa", "error": "MemoryError: too large"}


def test_processes_that_cannot_be_joined_are_an_error(monkeypatch, on_cpu):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="cannot join 2 processes on cpu; start one"):
        join_processes("cpu")


def test_a_truncated_image_is_an_error(tmp_path):
    Image.effect_noise((64, 64), 50).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:1000])
    with pytest.raises(OSError, match="truncated"):
        Image.open(tmp_path / "cut.png").load()
