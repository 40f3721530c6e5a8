"""
Tests of the paper's suite with the real lmms-eval, offline, on small data sets with the columns of the benchmarks.

The answers of the tiny model in the first run are the references of the second. The third changes some of them.
"""

import json

import pytest

from hawaii.evaluation.evaluate import evaluate
from hawaii.evaluation.paper.benchmarks import BENCHMARKS
from hawaii.tests.evaluation.answering_models import expected_answer, save_hawaii, save_llava
from hawaii.tests.evaluation.stand_ins import BUILDERS, any_answers, right, save_stand_ins


pytestmark = pytest.mark.slow
SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
# A wrong answer for each right one.
OTHER = {"yes": "no", "no": "yes", "A": "B", "B": "C", "C": "D", "D": "A"}
OTHER |= {"0": "1", "1": "2", "2": "3", "3": "0", 0: 1, 1: 2, 2: 3, 3: 0}
OPTIONS = "\nA. {}\nB. {}\nC. {}\nD. {}\n" + LETTER


def run(model, folder, truth, **options):
    """Evaluates the suite with these references. Returns the results and the samples of each benchmark."""
    data = save_stand_ins(folder / "data", truth)
    results = evaluate(model, folder / "out", data_folder=data, **{"suite": "paper", **options})
    lines = {task: (folder / "out" / f"samples_{task}.jsonl").read_text().splitlines() for task in results["tasks"]}
    return results, {task: [json.loads(line) for line in rows] for task, rows in lines.items()}


def answers_of(samples):
    return {task: [row["filtered_resps"] for row in rows] for task, rows in samples.items()}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A published folder that answers with letters, yes or no."""
    return save_hawaii(tmp_path_factory.mktemp("model") / "hub")


@pytest.fixture(scope="module")
def first(model, tmp_path_factory):
    """Results with batches of one question and arbitrary references."""
    truth = {task: any_answers(task) for task in BENCHMARKS}
    return run(model, tmp_path_factory.mktemp("first"), truth, batch_size=1)


@pytest.fixture(scope="module")
def truth(first):
    """The answers of the first run as references."""
    _, samples = first
    answers = answers_of(samples)
    # The question about a video is removed.
    answers["seedbench"].insert(2, "A")
    return {task: [right(task, answer) for answer in answers[task]] for task in BENCHMARKS}


@pytest.fixture(scope="module")
def second(model, truth, tmp_path_factory):
    """Results with batches of three questions and only right answers."""
    return run(model, tmp_path_factory.mktemp("second"), truth, batch_size=3)


@pytest.fixture(scope="module")
def third(model, truth, tmp_path_factory):
    """Results of two processes with one wrong answer per benchmark."""
    changed = {task: list(rows) for task, rows in truth.items()}
    for task, rows in changed.items():
        # MMBench's last is its first with the options in another order.
        number = -1 if task == "mmbench_en_dev_static" else 0
        if "answer" in rows[number]:
            rows[number] = {"answer": OTHER[rows[number]["answer"]]}
    # Ten people answered: one, and two, say what the model says.
    for task, count in {"textvqa_val": 1, "vizwiz_vqa_val": 2}.items():
        said = truth[task][0]["answers"][0]
        changed[task][0] = {"answers": [said] * count + ["something else"] * (10 - count)}
    return run(model, tmp_path_factory.mktemp("third"), changed, batch_size=3, num_processes=2)


def test_the_model_gives_the_trained_answers(first):
    _, samples = first
    for task, (_, colors, _) in BUILDERS.items():
        asked = [color for number, color in enumerate(colors) if (task, number) != ("seedbench", 2)]
        for row, color in zip(samples[task], asked, strict=True):
            colors = [] if color == "none" else [color]
            assert row["filtered_resps"] == expected_answer(row["input"], colors), (task, row)


@pytest.mark.parametrize(
    ("task", "number", "prompt"),
    [
        ("textvqa_val", 2, f"What is written there, no. 2?\nReference OCR token: DAKOTA, digital\n{SHORT}"),
        (
            "vizwiz_vqa_val",
            0,
            "What is this thing?\nWhen the provided information is insufficient, respond with 'Unanswerable'.\n"
            + SHORT,
        ),
        ("gqa", 1, f"Is the 1 on the left side?\n{SHORT}"),
        (
            "scienceqa_img",
            0,
            "Context: Read the text.\nWhich of these is it, 0?"
            + OPTIONS.format("chiasmus", "apostrophe", "irony", "hyperbole"),
        ),
        (
            "scienceqa_img",
            1,
            "Which of these is it, 1?" + OPTIONS.format("chiasmus", "apostrophe", "irony", "hyperbole"),
        ),
        ("pope", 3, f"Is there a dog in the image, 3?\n{SHORT}"),
        ("mme", 0, f"Is there a 0 in this image?\n{SHORT}"),
        ("mmbench_en_dev_static", 0, "What is in it, 0?" + OPTIONS.format("a dog", "a cat", "an ox", "an owl")),
        (
            "mmbench_en_dev_static",
            1,
            "A photograph.\nWhat is in it, 1?" + OPTIONS.format("a dog", "a cat", "an ox", "an owl"),
        ),
        ("mmbench_en_dev_static", 2, f"What is in it, 2?\nA. a dog\nB. a cat\nC. an ox\n{LETTER}"),
        (
            "mmmu_val",
            1,
            "Which of <image 1> and <image 2> shows <image 1> best?\nA. a fugue\nB. <image 1>\nC. a triad\n"
            f"D. none of these\n\n{LETTER}",
        ),
        ("mmmu_val", 3, f"<image 1> What is it?\n\n{SHORT}"),
        ("ai2d", 0, "What is 0?" + OPTIONS.format("stem", "leaf", "root", "bud")),
        ("seedbench", 0, "How many towels are in the image?" + OPTIONS.format("One", "Two", "Three", "Four")),
    ],
)
def test_the_prompts_are_those_of_llava(first, task, number, prompt):
    _, samples = first
    assert samples[task][number]["input"] == prompt


def test_batches_of_three_give_the_answers_of_batches_of_one(first, second):
    assert answers_of(second[1]) == answers_of(first[1])


def test_two_processes_give_the_answers_of_one(second, third):
    assert answers_of(third[1]) == answers_of(second[1])
    assert [row["doc_id"] for row in third[1]["mme"]] == list(range(8))


def test_right_answers_have_the_full_score(second):
    results, samples = second
    # Two categories of perception, 200 points each; the third pair of categories counts elsewhere.
    assert results["paper_scores"] == {task: 400 if task == "mme" else 100 for task in BENCHMARKS}
    assert results["paper_average"] == (9 * 100 + 20) / 10
    assert results["tasks"]["mme"]["mme_cognition_score"] == 200
    assert results["tasks"]["seedbench"] == {"seed_image": 1.0, "num_questions": 4}


def test_each_question_has_a_score(second, third):
    for samples, share in ((second[1], 1), (third[1], None)):
        for task, rows in samples.items():
            metrics = {"mme": ("mme_perception_score", "mme_cognition_score")}.get(task, (BENCHMARKS[task].metric,))
            for row in rows:
                (value,) = (row[metric] for metric in metrics if metric in row)
                score = value["score"] if isinstance(value, dict) else value
                assert 0 <= score <= 1 and (share is None or score == share), (task, row)


@pytest.mark.parametrize(
    ("task", "score"),
    [
        # One of ten people agrees: leaving out each of the nine others gives 1/3, so 9/10 * 1/3. Five questions.
        ("textvqa_val", 100 * (4 + 0.3) / 5),
        # Two agree: leaving out one of them gives 1/3, leaving out another person 2/3: 2/10 * 1/3 + 8/10 * 2/3.
        ("vizwiz_vqa_val", 100 * (4 + 0.6) / 5),
        ("gqa", 75),
        ("scienceqa_img", 75),
        # yes no yes no yes with the first one wrong: precision 2/3, recall 1.
        ("pope", 80),
        # Of the two images of "existence", one has half of its questions right (50 points), the other all (200).
        ("mme", 125 + 200),
        ("mmbench_en_dev_static", 75),
        ("mmmu_val", 75),
        ("ai2d", 75),
        ("seedbench", 75),
    ],
)
def test_one_wrong_answer_lowers_the_score(third, task, score):
    results, _ = third
    assert results["paper_scores"][task] == pytest.approx(score)


def test_a_llava_of_transformers_can_be_evaluated(tmp_path):
    model = save_llava(tmp_path / "llava", num_steps=0)
    truth = {task: any_answers(task) for task in BENCHMARKS}
    # With a question without an image, one with two, and lists of images.
    results, samples = run(model, tmp_path, truth, suite=None, tasks="scienceqa_img,mmmu_val,seedbench")
    assert results["tasks"].keys() == samples.keys() == {"scienceqa_img", "mmmu_val", "seedbench"}
    assert all(row["filtered_resps"] for rows in samples.values() for row in rows)
    assert (tmp_path / "out" / "results.md").is_file()


def test_a_scoring_error_names_task_and_log_and_ends_all_processes(model, tmp_path):
    truth = {task: any_answers(task) for task in BENCHMARKS}
    truth["pope"][1] = {"answer": "perhaps"}  # the second process's share
    with pytest.raises(ValueError) as raised:
        run(model, tmp_path, truth, suite=None, tasks="ai2d,pope,gqa", num_processes=2)
    message = str(raised.value)
    assert message.startswith("lmms-eval gave no score for pope, gqa (exit code 1) after ai2d. ")
    assert "evaluate.log has the complete output; the last error of pope is: AssertionError" in message
    assert "Traceback" in (tmp_path / "out" / "evaluate.log").read_text()
    assert (tmp_path / "out" / "samples_ai2d.jsonl").is_file() and not (tmp_path / "out" / "results.json").exists()
