"""One process of lmms-eval: which tasks it knows, what it keeps of a question, what it says of an error."""

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
    """The tasks of a run that asks for GQA."""
    return Tasks(str(write_task_files(["gqa"], {}, None, tmp_path)))


@pytest.fixture
def on_cpu(monkeypatch):
    """Forgets afterwards what a process sets for itself."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


@pytest.fixture
def plan(tmp_path, hub_folder, on_cpu):
    """Of a run with no task file yet."""
    (tmp_path / "results").mkdir()
    where = {"task_folder": str(tmp_path / "tasks"), "results": str(tmp_path / "results")}
    how = {"pretrained": str(hub_folder), "dtype": "auto", "device": "cpu", "batch_size": 2, "limit": None}
    return {"tasks": ["gqa"], **where, **how}


def test_a_task_of_ours_goes_by_lmms_evals_own_name(tasks):
    assert tasks.manager_of("gqa") is tasks.ours
    assert tasks.ours.all_tasks == ["gqa"]


def test_lmms_evals_other_tasks_are_there_too_and_others_are_named(tasks):
    assert tasks.packaged is None
    assert tasks.manager_of("chartqa") is tasks.packaged
    with pytest.raises(ValueError, match="lmms-eval has no task gqqa; .* --tasks list"):
        tasks.manager_of("gqqa")


def test_what_is_kept_of_a_question():
    sample = {"doc_id": 3, "doc": {"question": "?"}, "doc_hash": "0", "token_counts": [None], "accuracy": 1.0}
    sample |= {"target": 2, "arguments": ["the prompt", {}], "resps": [["B. it"]], "filtered_resps": ["B"]}
    kept = {"doc_id": 3, "accuracy": 1.0, "input": "the prompt", "target": "2", "filtered_resps": "B"}
    assert describe_sample(sample) == {**kept, "resps": [["B. it"]]}
    assert describe_sample({**sample, "resps": [["B"]]}) == kept


@pytest.mark.parametrize("name", ["image_id", "imageId", "image_source", "data_id"])
def test_the_image_of_a_question_is_kept(name):
    sample = {
        "doc": {"question": "?", name: 7},
        "arguments": ["?"],
        "target": "",
        "resps": [[""]],
        "filtered_resps": [""],
    }
    assert describe_sample(sample)["image_id"] == "7"


def test_a_line_for_each_question(tmp_path):
    write_json_lines(tmp_path / "rows.jsonl", [{"answer": "Ω\n"}, {"answer": "no"}])
    lines = (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["answer"] for line in lines] == ["Ω\n", "no"]


def test_the_cause_of_an_error_that_was_tried_again_is_the_first_one():
    @retry(stop=stop_after_attempt(2))
    def fail():
        raise ValueError("no such column")

    with pytest.raises(RetryError) as raised:
        fail()
    assert str(cause_of(raised.value)) == "no such column"
    assert cause_of(error := ValueError("plain")) is error


def test_an_error_is_left_for_the_starter_and_ends_the_process(plan, monkeypatch):
    def fail(name, manager, model, plan):
        raise MemoryError("too large")

    monkeypatch.setattr(lmms_worker, "run_task", fail)
    monkeypatch.setattr(lmms_worker, "Tasks", lambda folder: SimpleNamespace(manager_of=lambda name: None))
    with pytest.raises(MemoryError):
        main(plan)
    said = json.loads((Path(plan["results"]) / "error_0.json").read_text())
    assert said == {"task": "gqa", "error": "MemoryError: too large"}


def test_processes_that_cannot_be_joined_are_not_left_waiting(monkeypatch, on_cpu):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="cannot join 2 processes on cpu; start one"):
        join_processes("cpu")


def test_an_image_that_was_cut_short_is_an_error_and_not_half_gray(tmp_path):
    Image.effect_noise((64, 64), 50).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:1000])
    with pytest.raises(OSError, match="truncated"):
        Image.open(tmp_path / "cut.png").load()
