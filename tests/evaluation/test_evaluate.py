"""The evaluation command: what it checks, what it writes, and one real run of lmms-eval."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from datasets import Dataset
from datasets import Image as ImageFeature
from huggingface_hub import ModelCard
from PIL import Image

from hawaii.evaluation import evaluate as module
from hawaii.evaluation.chat import answer
from hawaii.evaluation.checkpoint import count_parameters
from hawaii.evaluation.evaluate import evaluate
from hawaii.evaluation.report import report
from hawaii.tests.tiny import FACTS


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
    """A run folder with six questions and no results yet."""
    (tmp_path / "data").mkdir()
    rows = [
        {"question_id": number, "question": question, "answer": answer, "question_type": kind, "image": image}
        for number, (question, answer, kind) in enumerate(QUESTIONS)
        for image in [Image.new("RGB", (16, 16), "red")]
    ]
    Dataset.from_list(rows).cast_column("image", ImageFeature()).to_parquet(tmp_path / "data" / "test.parquet")
    return tmp_path


def write_results(folder, results):
    """A file as lmms-eval leaves it."""
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "1_results.json").write_text(json.dumps(results))
    (folder / "model" / "1_samples_easy_vqa.jsonl").write_text("{}\n")


RESULTS = {
    "results": {
        "easy_vqa": {
            "alias": "easy_vqa",
            "accuracy,none": 0.75,
            "accuracy_stderr,none": 0.1,
            "accuracy_stderr_clt,none": 0.1,
            "accuracy_by_type,none": {"color": 0.5, "shape": 1.0},
            "accuracy_by_type_stderr,none": "N/A",
        }
    },
    "group_subtasks": {"easy_vqa": []},
    "n-samples": {"easy_vqa": {"original": 8, "effective": 4}},
}


@pytest.fixture
def quick(monkeypatch):
    """lmms-eval replaced by a process that leaves RESULTS at once."""

    def run(command, log_path, scratch, is_offline):
        write_results(Path(command[command.index("--output_path") + 1]), RESULTS)
        return 0

    monkeypatch.setattr(module, "_run", run)


def test_results_hold_scores_size_and_time(hub_folder, output_dir, quick, capsys):
    results = evaluate(hub_folder, "easy_vqa", output_dir)
    assert json.loads((output_dir / "results.json").read_text()) == results
    assert results["task"] == "easy_vqa"
    assert results["accuracy"] == 0.75
    assert results["accuracy_by_type"] == {"color": 0.5, "shape": 1.0}
    assert results["num_questions"] == 4
    assert results["num_parameters"] == count_parameters(hub_folder)
    assert results["evaluate_seconds"] >= 0
    assert results["tasks"]["easy_vqa"]["accuracy"] == 0.75
    assert "  accuracy       0.7500\n    color        0.5000\n" in capsys.readouterr().out


def test_what_training_measured_is_merged(hub_folder, output_dir, quick):
    training = {"train_seconds": 61.0, "num_parameters": 1, "pretrain": {"loss": 0.5}}
    (output_dir / "train_results.json").write_text(json.dumps(training))
    own = shutil.copytree(hub_folder, output_dir / "hub")
    results = evaluate(own, "easy_vqa", output_dir)
    assert results["train_seconds"] == 61.0 and results["pretrain"] == {"loss": 0.5}
    assert results["num_parameters"] == count_parameters(hub_folder)
    assert "train_seconds" not in evaluate(hub_folder, "easy_vqa", output_dir)  # another's


def test_the_card_states_the_scores_of_all_questions_alone(hub_folder, output_dir, quick):
    own = shutil.copytree(hub_folder, output_dir / "hub")
    (own / "training.json").write_text(json.dumps(FACTS))
    assert evaluate(own, "easy_vqa", output_dir, limit=4)["limit"] == 4
    assert not (own / "README.md").exists()
    evaluate(own, "easy_vqa", output_dir)
    assert "| easy_vqa | accuracy | 0.75 | 4 |" in (own / "README.md").read_text()
    (result,) = ModelCard.load(own / "README.md").data.eval_results
    assert (result.dataset_type, result.metric_type, result.metric_value) == ("easy_vqa", "accuracy", 0.75)


def test_answers_stay_and_scratch_files_go(hub_folder, output_dir, quick):
    evaluate(hub_folder, "easy_vqa", output_dir)
    names = {path.name for path in output_dir.iterdir()}
    assert names == {"data", "results.json", "samples_easy_vqa.jsonl"}


def run_instead(monkeypatch, code):
    monkeypatch.setattr(module, "_command", lambda *_: [sys.executable, "-c", code])


def test_a_run_without_results_raises_although_it_exits_with_0(hub_folder, output_dir, monkeypatch):
    run_instead(monkeypatch, "import sys; print('10%\\r20%\\rout of \\x1b[31mmemory', file=sys.stderr)")
    with pytest.raises(ValueError, match=r"no score for easy_vqa; .* exit code 0\. .*\.log .*: out of memory$"):
        evaluate(hub_folder, "easy_vqa", output_dir)
    assert not (output_dir / "results.json").exists()


def test_a_failed_run_leaves_the_results_of_the_last_one(hub_folder, output_dir, monkeypatch):
    (output_dir / "results.json").write_text("{}")
    run_instead(monkeypatch, "raise SystemExit(3)")
    with pytest.raises(ValueError, match="exit code 3"):
        evaluate(hub_folder, "easy_vqa", output_dir)
    assert (output_dir / "results.json").read_text() == "{}"


def test_progress_is_shown_and_logged(hub_folder, output_dir, monkeypatch, capsys):
    run_instead(monkeypatch, "import sys; print('chatter'); print('50%', file=sys.stderr)")
    with pytest.raises(ValueError):
        evaluate(hub_folder, "easy_vqa", output_dir)
    assert capsys.readouterr().err == "50%\n"
    assert {"chatter", "50%"} <= set((output_dir / "evaluate.log").read_text().split())


def read_scores(folder, results, names):
    write_results(folder / "results", {**RESULTS, **results})
    (folder / "log").write_text("why\n")
    return module._read_scores(folder / "results", names, folder / "log", 0)


def test_a_task_without_a_score_raises(tmp_path):
    results = {**RESULTS["results"], "gqa": {"alias": "gqa"}}
    with pytest.raises(ValueError, match="no score for gqa;"):
        read_scores(tmp_path, {"results": results}, ["easy_vqa", "gqa"])


def test_a_group_gives_the_scores_of_its_tasks(tmp_path):
    results = {**RESULTS["results"], "vqa": {" ": " ", "alias": "vqa"}}
    scores = read_scores(tmp_path, {"results": results, "group_subtasks": {"vqa": ["easy_vqa"]}}, ["vqa"])
    assert list(scores) == ["easy_vqa"]


def test_what_is_scored_elsewhere_leaves_a_file_to_hand_in(hub_folder, output_dir, monkeypatch):
    def run(command, log_path, scratch, is_offline):
        folder = Path(command[command.index("--output_path") + 1])
        write_results(folder, {**RESULTS, "results": {"easy_vqa": {"submission,none": None}}})
        (folder / "submissions").mkdir()
        (folder / "submissions" / "answers.json").write_text("[]")

    monkeypatch.setattr(module, "_run", run)
    assert evaluate(hub_folder, "easy_vqa", output_dir)["tasks"] == {"easy_vqa": {"num_questions": 4}}
    assert (output_dir / "submissions" / "answers.json").read_text() == "[]"


def test_a_folder_that_is_no_checkpoint_is_refused_before_anything_starts(tmp_path):
    with pytest.raises(ValueError, match="is not a checkpoint"):
        evaluate(tmp_path, "easy_vqa", tmp_path / "output")
    assert not (tmp_path / "output").exists()


def test_a_data_file_that_is_not_there_is_named(hub_folder, output_dir):
    with pytest.raises(ValueError, match=r"there is no typo\.parquet\.$"):
        evaluate(hub_folder, "easy_vqa", output_dir, data_file="typo.parquet")


def test_missing_questions_name_the_command_that_makes_them(hub_folder, tmp_path):
    with pytest.raises(ValueError, match="hawaii data easy_vqa --output_dir"):
        evaluate(hub_folder, "easy_vqa", tmp_path)


def test_a_comma_in_the_path_is_refused(hub_folder, output_dir):
    shutil.copytree(hub_folder, output_dir / "a,b")
    with pytest.raises(ValueError, match="comma"):
        evaluate(output_dir / "a,b", "easy_vqa", output_dir)


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
def test_lmms_eval_asks_every_question(hub_folder, output_dir):
    # What it answers to the first and the fourth is made their truth; of no other can it know the answer.
    path = output_dir / "data" / "test.parquet"
    Image.new("RGB", (16, 16), "red").save(output_dir / "red.png")
    right = [answer(hub_folder, str(output_dir / "red.png"), QUESTIONS[n][0], max_new_tokens=8) for n in (0, 3)]
    truth = [right[0], "-", "-", right[1], "-", "-"]
    questions = Dataset.from_parquet(str(path))
    questions.remove_columns("answer").add_column("answer", truth).to_parquet(path)

    results = evaluate(hub_folder, "easy_vqa", output_dir, batch_size=4)
    samples = [json.loads(line) for line in (output_dir / "samples_easy_vqa.jsonl").read_text().splitlines()]
    assert [sample["input"] for sample in samples] == [question for question, _, _ in QUESTIONS]
    assert results["accuracy"] == 2 / 6
    assert results["accuracy_by_type"] == {"color": 0.5, "shape": 0, "yes/no color": 0, "yes/no shape": 0.5}
    assert results["num_questions"] == len(QUESTIONS)


@pytest.mark.slow
def test_an_error_inside_lmms_eval_is_shown(hub_folder, output_dir):
    folder = shutil.copytree(hub_folder, output_dir / "broken")
    (folder / "tokenizer.json").write_text("no json")
    with pytest.raises(ValueError, match="exit code 0.*at last: .* Expecting value"):
        evaluate(folder, "easy_vqa", output_dir, limit=2)
