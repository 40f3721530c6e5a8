"""Tests of lmms-eval's processes, which short programs replace."""

import json
import sys

import pytest

from hawaii.evaluation.lmms import process as lmms_process
from hawaii.evaluation.lmms.process import run_lmms_eval


RESULTS = {
    "results": {
        "gqa": {
            "alias": "gqa",
            "exact_match,none": 0.75,
            "exact_match_stderr,none": 0.1,
            "exact_match_stderr_clt,none": 0.1,
            "by_type,none": {"color": 0.5, "shape": 1.0},
            "by_type_stderr,none": "N/A",
        }
    },
    "group_subtasks": {"gqa": []},
    "n-samples": {"gqa": {"original": 8, "effective": 4}},
}
# `results` is the output folder of the program.
START = "import json, pathlib, sys; results = pathlib.Path(json.load(open('plan.json'))['results']);"


def write(name, values):
    """Returns code that writes a file."""
    return f"(results / {name!r}).write_text({json.dumps(values)!r});"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Evaluates tasks with a program instead of a worker."""

    def run(program, *tasks):
        monkeypatch.setattr(lmms_process, "_command", lambda *_: [sys.executable, "-c", START + program])
        (tmp_path / "scratch").mkdir()
        plan = {"tasks": list(tasks), "pretrained": "hub", "limit": None}
        return run_lmms_eval(plan, tmp_path, tmp_path / "scratch", 1, {"HF_HUB_OFFLINE": "1"})

    return run


def test_metrics_are_read_without_their_errors_and_with_the_number_of_questions(run):
    scores = run(write("gqa.json", RESULTS), "gqa")
    assert scores == {
        "gqa": {"exact_match": 0.75, "by_type": {"color": 0.5, "shape": 1.0}, "num_questions": 4},
    }


def test_only_the_metrics_of_further_filters_include_the_filter_in_their_names(run):
    result = {"exact_match,strict": 0.5, "exact_match,flexible": 0.75}
    scores = run(write("ai2d.json", {**RESULTS, "results": {"ai2d": result}}), "ai2d")
    assert scores["ai2d"] == {"exact_match": 0.5, "exact_match,flexible": 0.75}


def test_a_group_gives_the_scores_of_its_tasks(run):
    results = {**RESULTS, "results": {**RESULTS["results"], "vqa": {" ": " ", "alias": "vqa"}}}
    assert list(run(write("vqa.json", results), "vqa")) == ["gqa"]


def test_submission_files_are_kept(run, tmp_path):
    results = {**RESULTS, "results": {"gqa": {"submission,none": None}}}
    hand_in = "(results / 'submissions').mkdir();" + write("submissions/answers.json", [])
    assert run(write("gqa.json", results) + hand_in, "gqa") == {"gqa": {"num_questions": 4}}
    assert (tmp_path / "submissions" / "answers.json").read_text() == "[]"


def test_progress_is_shown_and_logged(run, tmp_path, capsys):
    run(write("gqa.json", RESULTS) + "print('chatter'); print('50%', file=sys.stderr)", "gqa")
    assert capsys.readouterr().err == "50%\n"
    assert {"chatter", "50%"} <= set((tmp_path / "evaluate.log").read_text().split())


def test_the_process_has_the_given_environment(run):
    program = "import os; assert os.environ['HF_HUB_OFFLINE'] == '1';"
    assert run(program + write("gqa.json", RESULTS), "gqa")


def test_a_run_without_results_raises_although_it_exits_with_0(run):
    with pytest.raises(
        ValueError, match=r"no score for gqa \(exit code 0\)\. .*\.log .* the last error is: out of memory$"
    ):
        run("print('10%\\r20%\\rout of \\x1b[31mmemory', file=sys.stderr)", "gqa")


def test_a_task_without_a_score_raises(run):
    with pytest.raises(ValueError, match=r"no score for gqa \(exit code 0\)"):
        run(write("gqa.json", {**RESULTS, "results": {"gqa": {"alias": "gqa"}}}), "gqa")


def test_the_error_of_a_run_that_fails_after_its_results_names_no_missing_task(run, tmp_path):
    with pytest.raises(ValueError) as raised:
        run(write("gqa.json", RESULTS) + "sys.exit('a device is lost')", "gqa")
    assert str(raised.value) == (
        "lmms-eval gave all scores but failed (exit code 1) after gqa. "
        f"{tmp_path}/unfinished_results.json has the scores so far. "
        f"{tmp_path}/evaluate.log has the complete output; the last error is: a device is lost"
    )
    assert json.loads((tmp_path / "unfinished_results.json").read_text())["missing"] == []


def test_scores_before_an_error_are_kept_as_unfinished(run, tmp_path):
    with pytest.raises(
        ValueError, match=r"after gqa\. .*/unfinished_results\.json .* or evaluate only the other tasks with"
    ):
        run(write("gqa.json", RESULTS) + "sys.exit(1)", "gqa", "pope")
    kept = json.loads((tmp_path / "unfinished_results.json").read_text())
    assert (kept["pretrained"], kept["limit"], kept["missing"]) == ("hub", None, ["pope"])
    assert {task: scores["exact_match"] for task, scores in kept["tasks"].items()} == {"gqa": 0.75}
    assert not (tmp_path / "results.json").exists()


def test_without_a_completed_task_no_scores_are_kept(run, tmp_path):
    with pytest.raises(ValueError, match=r"no score for gqa \(exit code 1\)\. .*evaluate\.log has"):
        run("sys.exit(1)", "gqa")
    assert not (tmp_path / "unfinished_results.json").exists()


def test_the_first_error_of_several_processes_is_reported_with_its_task(run):
    first = write("error_1.json", {"task": "pope", "error": "ValueError: a bad image"})
    second = write("error_0.json", {"task": "pope", "error": "connection lost"})
    second += "import os; os.utime(results / 'error_1.json', (1, 1)); os.utime(results / 'error_0.json', (2, 2));"
    with pytest.raises(ValueError) as raised:
        run(write("gqa.json", RESULTS) + first + second + "sys.exit(1)", "gqa", "pope", "mme")
    assert str(raised.value).startswith("lmms-eval gave no score for pope, mme (exit code 1) after gqa. ")
    assert str(raised.value).endswith("the last error of pope is: ValueError: a bad image")


def test_answers_before_an_error_are_kept(run, tmp_path):
    with pytest.raises(ValueError):
        run(write("samples_gqa.jsonl", {}) + "sys.exit(1)", "gqa")
    assert (tmp_path / "samples_gqa.jsonl").is_file()


def test_answers_replace_the_results_of_an_earlier_evaluation(run, tmp_path):
    for name in ("results.json", "results.md"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError):
        run(write("gqa.json", RESULTS) + write("samples_gqa.jsonl", {}) + "sys.exit(1)", "gqa", "pope")
    assert not list(tmp_path.glob("results.*"))


def test_answers_replace_the_scores_of_a_failed_evaluation(run, tmp_path):
    (tmp_path / "unfinished_results.json").touch()
    run(write("gqa.json", RESULTS) + write("samples_gqa.jsonl", {}), "gqa")
    assert not (tmp_path / "unfinished_results.json").exists()


def test_one_process_needs_no_launcher(tmp_path):
    assert lmms_process._command(tmp_path, 1)[1:] == ["-m", "hawaii.evaluation.lmms.worker", str(tmp_path)]
    assert lmms_process._command(tmp_path, 3)[2:6] == [
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "3",
    ]
