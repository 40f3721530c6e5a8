"""Tests of the evaluation command, including a real run of lmms-eval."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset
from datasets import Image as ImageFeature
from huggingface_hub import ModelCard
from PIL import Image

from hawaii.evaluation import evaluate as module
from hawaii.evaluation.chat import chat
from hawaii.evaluation.checkpoint import count_parameters
from hawaii.evaluation.evaluate import card_results, evaluate
from hawaii.evaluation.lmms import process as lmms_process
from hawaii.evaluation.paper.benchmarks import BENCHMARKS
from hawaii.evaluation.paper.questions import DATA_FOLDER
from hawaii.evaluation.report import report
from hawaii.tests.tiny.models import FACTS


QUESTIONS = [
    ("what color is the shape ?", "red", "color"),
    ("what color is the circle ?", "blue", "color"),
    ("what shape is in the image ?", "circle", "shape"),
    ("is there a circle ?", "yes", "yes/no shape"),
    ("is there no square ?", "no", "yes/no shape"),
    ("is the shape red ?", "yes", "yes/no color"),
]


@pytest.fixture
def output_dir(tmp_path):
    """A run folder with six questions and no results."""
    (tmp_path / "data").mkdir()
    rows = [
        {"question_id": number, "question": question, "answer": answer, "question_type": kind, "image": image}
        for number, (question, answer, kind) in enumerate(QUESTIONS)
        for image in [Image.new("RGB", (16, 16), "red")]
    ]
    Dataset.from_list(rows).cast_column("image", ImageFeature()).to_parquet(tmp_path / "data" / "test.parquet")
    return tmp_path


# The metrics of Table 1.
PAPER_METRICS = {
    "exact_match": 0.625,
    "pope_f1_score": 0.625,
    "mme_perception_score": 1500.0,
    "gpt_eval_score": 62.5,
    "mmmu_acc": 0.625,
    "seed_image": 0.625,
    "num_questions": 8,
}
SCORES = {"accuracy": 0.75, "accuracy_by_type": {"color": 0.5, "shape": 1.0}, "num_questions": 4}


@pytest.fixture
def quick(monkeypatch):
    """Replaces lmms-eval by SCORES and returns the list of its calls."""
    calls = []

    def run(plan, output_dir, scratch, num_processes, environment):
        calls.append((plan, num_processes, environment))
        return {task: SCORES if task == "easy_vqa" else PAPER_METRICS for task in plan["tasks"]}

    monkeypatch.setattr(module, "run_lmms_eval", run)
    return calls


def test_results_contain_scores_size_and_time(hub_folder, output_dir, quick, capsys):
    results = evaluate(hub_folder, output_dir, "easy_vqa")
    assert json.loads((output_dir / "results.json").read_text()) == results
    assert results["task"] == "easy_vqa"
    assert results["accuracy"] == 0.75
    assert results["accuracy_by_type"] == {"color": 0.5, "shape": 1.0}
    assert results["num_questions"] == 4
    assert results["num_parameters"] == count_parameters(hub_folder)
    assert results["evaluate_seconds"] >= 0
    assert results["tasks"]["easy_vqa"]["accuracy"] == 0.75
    assert "  accuracy       0.7500\n    color        0.5000\n" in capsys.readouterr().out


def test_results_include_the_training_statistics(hub_folder, output_dir, quick):
    training = {"train_seconds": 61.0, "num_parameters": 1, "pretrain": {"loss": 0.5}}
    (output_dir / "train_results.json").write_text(json.dumps(training))
    own = shutil.copytree(hub_folder, output_dir / "hub")
    results = evaluate(own, output_dir, "easy_vqa")
    assert results["train_seconds"] == 61.0 and results["pretrain"] == {"loss": 0.5}
    assert results["num_parameters"] == count_parameters(hub_folder)
    assert "train_seconds" not in evaluate(hub_folder, output_dir, "easy_vqa")  # not trained in this folder


def test_the_card_contains_scores_only_of_complete_evaluations(hub_folder, output_dir, quick):
    own = shutil.copytree(hub_folder, output_dir / "hub")
    (own / "training.json").write_text(json.dumps(FACTS))
    assert evaluate(own, output_dir, "easy_vqa", limit=4)["limit"] == 4
    assert not (own / "README.md").exists()
    evaluate(own, output_dir, "easy_vqa")
    assert re.search(r"\| easy_vqa \| +\| accuracy \| +0.75 \| +4 \|", (own / "README.md").read_text())
    (result,) = ModelCard.load(own / "README.md").data.eval_results
    assert (result.dataset_type, result.metric_type, result.metric_value) == ("easy_vqa", "accuracy", 0.75)


def test_scratch_files_are_deleted(hub_folder, output_dir, quick):
    evaluate(hub_folder, output_dir, "easy_vqa")
    assert {path.name for path in output_dir.iterdir()} == {"data", "results.json"}


def test_a_failed_evaluation_keeps_the_previous_results(hub_folder, output_dir, monkeypatch):
    (output_dir / "results.json").write_text("{}")
    monkeypatch.setattr(lmms_process, "_command", lambda *_: [sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(ValueError, match="exit code 3"):
        evaluate(hub_folder, output_dir, "easy_vqa")
    assert (output_dir / "results.json").read_text() == "{}"


def test_a_suite_is_compared_with_the_papers_rows(hub_folder, tmp_path, quick, capsys):
    results = evaluate(hub_folder, tmp_path, suite="paper")
    ((plan, num_processes, environment),) = quick
    assert plan["tasks"] == list(BENCHMARKS) and num_processes == 1 and environment == {DATA_FOLDER: ""}
    assert results["paper_scores"]["gqa"] == 62.5 and results["paper_scores"]["mme"] == 1500
    report = (tmp_path / "results.md").read_text()
    assert re.search(r"^\| HAWAII +\| +58\.7 \| .* \| +63\.7 \|$", report, flags=re.MULTILINE)
    assert re.search(rf"^\| {hub_folder} +\| +62\.5 \| .* \| +1500\.0 \|", report, flags=re.MULTILINE)
    assert "Only the first" not in report and "| HAWAII " in capsys.readouterr().out


def test_a_part_of_the_suite_has_its_columns_and_no_average(hub_folder, tmp_path, quick):
    assert evaluate(hub_folder, tmp_path, "gqa,pope", limit=4)["paper_average"] is None
    report = (tmp_path / "results.md").read_text()
    assert [cell.strip() for cell in report.splitlines()[2].split("|")] == ["", "", "GQA", "POPE", ""]
    assert "Only the first 4 questions" in report


def test_a_benchmark_without_scored_questions_is_named(hub_folder, tmp_path, monkeypatch):
    scores = {
        "gqa": {"exact_match": 0.5, "num_questions": 2},
        "mme": {"mme_cognition_score": 200.0, "num_questions": 2},
    }
    monkeypatch.setattr(module, "run_lmms_eval", lambda *args: scores)
    evaluate(hub_folder, tmp_path, "gqa,mme", limit=2)
    assert "No evaluated question of mme counts for the table." in (tmp_path / "results.md").read_text()


def test_the_table_of_an_earlier_evaluation_is_deleted(hub_folder, output_dir, quick):
    evaluate(hub_folder, output_dir, "gqa")
    evaluate(hub_folder, output_dir, "easy_vqa")
    assert not (output_dir / "results.md").exists()


def test_the_card_contains_the_scores_of_the_papers_benchmarks(hub_folder, tmp_path, quick):
    own = shutil.copytree(hub_folder, tmp_path / "hub")
    (own / "training.json").write_text(json.dumps(FACTS))
    evaluate(own, tmp_path, "gqa,mme")
    gqa, mme = ModelCard.load(own / "README.md").data.eval_results
    assert (gqa.dataset_name, gqa.dataset_type, gqa.dataset_split) == ("GQA", "lmms-lab-encoder/GQA", "testdev")
    assert (gqa.dataset_config, gqa.metric_type, gqa.metric_value) == (
        "testdev_balanced_instructions",
        "accuracy",
        62.5,
    )
    assert (mme.dataset_name, mme.metric_type, mme.metric_value) == ("MME", "score", 1500)
    assert re.search(r"\| GQA  \| testdev \| accuracy \| +62.5 \| +8 \|", (own / "README.md").read_text())


def test_a_score_that_is_not_finite_is_not_in_the_card():
    scores = {"mine": {"accuracy": float("nan"), "f1": 0.5, "loss": float("inf"), "num_questions": 2}, "mme": {}}
    assert card_results(scores, {"mme": float("nan")}) == [
        {"task": "mine", "num_questions": 2, "metric": "f1", "value": 0.5}
    ]


@pytest.mark.parametrize("given", [{}, {"tasks": "gqa", "suite": "paper"}])
def test_exactly_one_of_tasks_and_suite_must_be_given(hub_folder, tmp_path, given):
    with pytest.raises(ValueError, match="Give either --tasks or --suite"):
        evaluate(hub_folder, tmp_path, **given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"suite": "papre"}, "There is no suite 'papre'; choose paper"),
        ({"tasks": "gqa,pope,gqa"}, "The tasks list gqa twice"),
        ({"suite": "paper", "limit": 3}, "--limit 3 splits a pair; give an even number"),
        ({"tasks": "gqa", "num_processes": 0}, "--num_processes is 0, but must be at least 1"),
        ({"tasks": "gqa", "limit": 0}, "--limit is 0, but must be at least 1"),
        ({"tasks": "gqa", "batch_size": 0}, "--batch_size is 0, but must be at least 1"),
        (
            {"tasks": "gqa,pope", "data_file": "f"},
            "--data_file f is for easy_vqa or emoji_vqa, but the tasks are gqa, pope",
        ),
        ({"tasks": "easy_vqa,emoji_vqa"}, "easy_vqa and emoji_vqa would read the same question file"),
        ({"tasks": "gqa", "num_processes": 2, "device": "cuda:1"}, "but 2 processes use one each; remove --device"),
    ],
)
def test_invalid_options_are_refused_before_anything_starts(hub_folder, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate(hub_folder, tmp_path / "output", **options)
    assert not (tmp_path / "output").exists()


def test_the_error_for_missing_libraries_names_the_installation_command(hub_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None if name in ("loguru", "pytz") else True)
    with pytest.raises(ValueError, match=r"needs loguru, pytz: pip install"):
        evaluate(hub_folder, tmp_path, "gqa")


def test_local_questions_need_no_network(hub_folder, output_dir, quick):
    evaluate(hub_folder, output_dir, "easy_vqa")
    evaluate(hub_folder, output_dir, "easy_vqa,gqa")
    (_, _, at_hand), (_, _, on_the_hub) = quick
    assert at_hand == {"HF_HUB_OFFLINE": "1", DATA_FOLDER: ""} and on_the_hub == {DATA_FOLDER: ""}


def test_a_folder_that_is_not_a_checkpoint_is_refused_before_anything_starts(tmp_path):
    with pytest.raises(ValueError, match="is not a checkpoint"):
        evaluate(tmp_path, tmp_path / "output", "easy_vqa")
    assert not (tmp_path / "output").exists()


def test_the_error_names_a_missing_data_file(hub_folder, output_dir):
    with pytest.raises(ValueError, match=r"there is no typo\.parquet\.$"):
        evaluate(hub_folder, output_dir, "easy_vqa", data_file="typo.parquet")


def test_the_error_for_missing_questions_names_the_command_that_creates_them(hub_folder, tmp_path):
    with pytest.raises(ValueError, match="hawaii data easy_vqa --output_dir"):
        evaluate(hub_folder, tmp_path, "easy_vqa")


def test_the_report_ends_with_a_command_to_paste(tmp_path):
    tasks = {"easy_vqa": {"accuracy": 0.5}}
    results = {"tasks": tasks, "folder": "runs/hub", "num_parameters": 2000, "train_seconds": 61}
    lines = report(results, tmp_path).splitlines()
    assert {"  accuracy     0.5000", "parameters     2,000", "training time  1 min 1 s"} <= set(lines)
    assert lines[-1].endswith('hawaii chat runs/hub --image your.png --question "what color is the shape?"')
    results = {**results, "folder": "my runs/hub", "train_seconds": 119.7}
    assert "training time  2 min 0 s" in report(results, tmp_path)
    assert "hawaii chat 'my runs/hub' --image" in report(results, tmp_path)


@pytest.mark.slow
def test_lmms_eval_evaluates_every_question(hub_folder, output_dir):
    # The answers to the first and fourth question become the references; no other answer can be right.
    path = output_dir / "data" / "test.parquet"
    Image.new("RGB", (16, 16), "red").save(output_dir / "red.png")
    right = [chat(hub_folder, [str(output_dir / "red.png")], QUESTIONS[n][0], max_new_tokens=8) for n in (0, 3)]
    truth = [right[0], "-", "-", right[1], "-", "-"]
    questions = Dataset.from_parquet(str(path))
    questions.remove_columns("answer").add_column("answer", truth).to_parquet(path)

    results = evaluate(hub_folder, output_dir, "easy_vqa", batch_size=4)
    samples = [json.loads(line) for line in (output_dir / "samples_easy_vqa.jsonl").read_text().splitlines()]
    assert [sample["input"] for sample in samples] == [question for question, _, _ in QUESTIONS]
    assert results["accuracy"] == 2 / 6
    assert results["accuracy_by_type"] == {"color": 0.5, "shape": 0, "yes/no color": 0, "yes/no shape": 0.5}
    assert results["num_questions"] == len(QUESTIONS)


@pytest.mark.slow
def test_the_command_of_lmms_eval_evaluates_a_published_folder(hub_folder, output_dir):
    tasks = Path(module.__file__).parent / "tasks"
    words = ["--model", "hawaii", "--model_args", f"pretrained={hub_folder}", "--tasks", "easy_vqa"]
    words += ["--include_path", str(tasks), "--batch_size", "4", "--output_path", "lmms_eval"]
    command = [sys.executable, "-m", "lmms_eval", *words]
    finished = subprocess.run(command, cwd=output_dir / "data", capture_output=True, text=True)
    # The command also exits with status 0 after an error.
    assert finished.returncode == 0 and "|easy_vqa|none" in finished.stdout, finished.stderr
    (path,) = (output_dir / "data" / "lmms_eval").rglob("*_results.json")
    results = json.loads(path.read_text())
    assert results["n-samples"]["easy_vqa"]["effective"] == len(QUESTIONS)
    assert results["results"]["easy_vqa"]["accuracy_by_type,none"].keys() == {kind for _, _, kind in QUESTIONS}
