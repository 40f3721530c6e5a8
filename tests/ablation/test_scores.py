"""Scores of tasks and questions are read from the results of an evaluation."""

import json

import pytest

from hawaii.ablation.scores import read_scores
from hawaii.files.user_error import UserError


def write_and_read(folder, results, **samples):
    """Writes the files of an evaluation and reads the scores from them."""
    (folder / "results.json").write_text(json.dumps(results))
    for task, rows in samples.items():
        lines = [json.dumps({"doc_id": number, **row}) for number, row in enumerate(rows)]
        (folder / f"samples_{task}.jsonl").write_text("\n".join(lines) + "\n")
    return read_scores(folder)


def typed(score, question_type):
    return {"accuracy": score, "accuracy_by_type": {"question_type": question_type, "score": score}}


def test_shares_are_percent_and_questions_keep_image_and_type(tmp_path):
    metrics = {"accuracy": 0.75, "accuracy_by_type": {"color": 1.0, "shape": 0.5}, "num_questions": 4}
    rows = [typed(1.0, "color"), typed(1.0, "color"), typed(1.0, "shape"), typed(0.0, "shape")]
    rows = [{**row, "image_id": str(number // 2)} for number, row in enumerate(rows)]
    scores, questions = write_and_read(tmp_path, {"tasks": {"easy_vqa": metrics}}, easy_vqa=rows)
    assert scores == {"easy_vqa": {"score": 75.0, "num_questions": 4, "by_type": {"color": 100.0, "shape": 50.0}}}
    assert questions["easy_vqa"] == {
        "scores": [100.0, 100.0, 100.0, 0.0],
        "groups": ["0", "0", "1", "1"],
        "types": ["color", "color", "shape", "shape"],
    }


def test_each_question_is_a_group_if_the_images_are_unknown(tmp_path):
    rows = [{"exact_match": 1.0}, {"exact_match": 0.0}]
    scores, questions = write_and_read(
        tmp_path, {"tasks": {"ai2d": {"exact_match": 0.5}}, "paper_scores": {"ai2d": 50.0}}, ai2d=rows
    )
    assert scores["ai2d"] == {"score": 50.0, "num_questions": 2}
    assert questions["ai2d"] == {"scores": [100.0, 0.0], "groups": ["question 0", "question 1"], "types": None}


def test_a_benchmark_has_the_score_of_the_paper_and_nested_question_scores(tmp_path):
    results = {"tasks": {"mmbench_en_dev_static": {"gpt_eval_score": 50.0}}}
    results["paper_scores"] = {"mmbench_en_dev_static": 50.0}
    rows = [{"gpt_eval_score": {"score": 1.0}}, {"gpt_eval_score": {"score": 0.0}}]
    scores, questions = write_and_read(tmp_path, results, mmbench_en_dev_static=rows)
    assert scores["mmbench_en_dev_static"]["score"] == 50.0
    assert questions["mmbench_en_dev_static"]["scores"] == [100.0, 0.0]


@pytest.mark.parametrize(
    ("task", "metrics", "score", "rows"),
    [
        # F1 is not a mean, although each question has a score.
        ("pope", {"pope_f1_score": 0.8}, 80.0, [{"pope_f1_score": {"score": 1.0}}, {"pope_f1_score": {"score": 0.0}}]),
        ("mme", {"mme_perception_score": 1500.0}, 1500.0, [{"mme_perception_score": {"score": 1.0}}] * 2),
        # One question has no score.
        ("gqa", {"exact_match": 1.0}, 100.0, [{"exact_match": 1.0}, {}]),
    ],
)
def test_a_score_that_is_not_the_mean_over_questions_has_no_question_scores(tmp_path, task, metrics, score, rows):
    scores, questions = write_and_read(
        tmp_path, {"tasks": {task: metrics}, "paper_scores": {task: score}}, **{task: rows}
    )
    assert scores[task]["score"] == score
    assert questions == {}


def test_the_score_of_another_task_is_its_first_number_in_percent_if_it_is_a_share(tmp_path):
    tasks = {"chartqa": {"relaxed_overall": 0.5, "relaxed_human": 0.25}, "coco": {"CIDEr": 1.1}}
    rows = {"chartqa": [{"relaxed_overall": 1.0}, {"relaxed_overall": 0.0}], "coco": [{"CIDEr": {"pred": "a"}}]}
    scores, questions = write_and_read(tmp_path, {"tasks": tasks}, **rows)
    assert (scores["chartqa"]["score"], scores["coco"]["score"]) == (50.0, 1.1)
    assert list(questions) == ["chartqa"]


def test_a_task_without_a_number_is_refused(tmp_path):
    with pytest.raises(
        UserError, match="The results of vqav2 have no number for the table, only num_questions. Use another task."
    ):
        write_and_read(tmp_path, {"tasks": {"vqav2": {"num_questions": 3}}})
    with pytest.raises(
        UserError, match="The results of mme have no mme_perception_score for the table, only mme_cognition_score."
    ):
        write_and_read(tmp_path, {"tasks": {"mme": {"mme_cognition_score": 3.0}}})
