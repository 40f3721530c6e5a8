"""Means, deviations and differences of a few runs, small enough to check by hand."""

import pytest

from hawaii.ablation.statistics import Column, Part, compare, make_columns, summarize_row, value_of
from hawaii.evaluation.paper.results import PAPER_ROWS, average
from hawaii.files.user_error import UserError


def make_run(seed, scores, groups=None, types=None, row="hawaii", task="t"):
    """A run with one task, whose score is the mean of its questions."""
    run = {"row": row, "seed": seed, "steps": 10, "train_seconds": 20.0, "seconds_per_step": 2.0, "num_parameters": 7}
    groups = [f"question {number}" for number in range(len(scores))] if groups is None else groups
    run["scores"] = {task: {"score": sum(scores) / len(scores)}}
    run["questions"] = {task: {"scores": scores, "groups": groups, "types": types}}
    if types is not None:
        chosen = {name: [score for score, other in zip(scores, types) if other == name] for name in types}
        run["scores"][task]["by_type"] = {name: sum(values) / len(values) for name, values in chosen.items()}
    return run


ONE = Column("t", (Part("t"),))


def test_a_single_task_has_a_column_per_question_type_and_an_average_over_questions():
    run = make_run(0, [100, 100, 100, 0], types=["color", "color", "color", "shape"])
    columns = make_columns(run["scores"])
    assert [(column.label, value_of(run, column)) for column in columns] == [
        ("color", 100),
        ("shape", 0),
        ("Avg.", 75),
    ]


def test_several_tasks_have_a_column_each_and_an_average_over_tasks():
    run = {"scores": {"gqa": {"score": 60.0}, "emoji_vqa": {"score": 20.0, "by_type": {"color": 10, "count": 30}}}}
    columns = make_columns(run["scores"])
    assert [(column.label, value_of(run, column)) for column in columns] == [
        ("GQA", 60),
        ("emoji_vqa", 20),
        ("Avg.", 40),
    ]


@pytest.mark.parametrize("scores", [{"t": {"score": 5.0}}, {"t": {"score": 5.0, "by_type": {"only": 5.0}}}])
def test_a_single_task_with_one_question_type_is_one_column(scores):
    assert make_columns(scores) == [ONE]


def test_the_average_of_the_ten_benchmarks_is_that_of_the_paper():
    for row in (row for row in PAPER_ROWS.values() if len(row) == 10):
        run = {"scores": {task: {"score": score} for task, score in row.items()}}
        *columns, last = make_columns(run["scores"])
        assert [value_of(run, column) for column in columns] == list(row.values())
        assert value_of(run, last) == pytest.approx(average(row))


def test_a_row_has_the_mean_and_sample_deviation_over_seeds():
    runs = {seed: make_run(seed, [value]) for seed, value in enumerate([10.0, 20.0, 30.0])}
    found = summarize_row(runs, None, [ONE])
    assert found["columns"]["t"] == {
        "mean": 20.0,
        "deviation": 10.0,
        "by_seed": {0: 10.0, 1: 20.0, 2: 30.0},
        "against_baseline": None,
    }
    assert found["seconds_per_step"] == {"mean": 2.0, "deviation": 0.0}
    assert found["num_parameters"] == 7


def test_one_seed_has_no_deviation_and_no_seed_has_no_columns():
    assert summarize_row({0: make_run(0, [1.0])}, None, [ONE])["columns"]["t"]["deviation"] is None
    assert summarize_row({}, None, [ONE]) == {"columns": {}}


def test_rows_are_compared_over_their_common_seeds():
    baseline = {0: make_run(0, [0.0, 100.0]), 1: make_run(1, [0.0, 0.0])}
    row = {1: make_run(1, [100.0, 0.0]), 2: make_run(2, [100.0, 100.0])}
    found = compare(row, baseline, ONE)
    assert found["difference"] == 50 and found["resampled"] == ["images"]
    assert 0 <= found["low"] < 50 < found["high"] <= 100
    assert compare({2: row[2]}, baseline, ONE) is None


def test_questions_about_the_same_image_are_resampled_together():
    apart = compare({0: make_run(0, [0, 0, 100, 100] * 10)}, {0: make_run(0, [0] * 40)}, ONE)
    groups = [str(number // 20) for number in range(40)]
    together = {"groups": groups, "types": None}
    two = compare({0: make_run(0, [0] * 20 + [100] * 20, **together)}, {0: make_run(0, [0] * 40, **together)}, ONE)
    assert (two["low"], two["high"]) == (0, 100)
    assert apart["high"] - apart["low"] < 40


def test_a_question_type_is_compared_over_its_questions_only():
    types = ["color", "color", "shape", "shape"]
    row, baseline = {0: make_run(0, [100, 100, 0, 0], types=types)}, {0: make_run(0, [0, 0, 0, 0], types=types)}
    color, shape = (compare(row, baseline, Column(name, (Part("t", name),))) for name in ("color", "shape"))
    assert (color["low"], color["difference"], color["high"]) == (100, 100, 100)
    assert (shape["low"], shape["difference"], shape["high"]) == (0, 0, 0)


def without_questions(score, seed):
    run = make_run(seed, [score])
    return {**run, "questions": {}}


def test_without_question_scores_only_seeds_are_resampled():
    row = {seed: without_questions(50.0 + seed, seed) for seed in range(3)}
    baseline = {seed: without_questions(40.0, seed) for seed in range(3)}
    found = compare(row, baseline, ONE)
    assert found["difference"] == 11 and found["resampled"] == ["seeds"]
    assert found["low"] < 10 and found["high"] > 12  # wider than the resampled seeds, because new seeds vary more
    assert compare({0: row[0]}, {0: baseline[0]}, ONE) == {
        "difference": 10.0,
        "low": None,
        "high": None,
        "resampled": [],
    }


def test_only_seeds_are_resampled_for_an_average_if_one_task_has_no_question_scores():
    both = Column("Avg.", (Part("t"), Part("pope")))
    row, baseline = ({seed: make_run(seed, [value, value]) for seed in range(2)} for value in (50.0, 40.0))
    assert compare(row, baseline, Column("Avg.", (Part("t"), Part("t"))))["resampled"] == ["images", "seeds"]
    for run in (*row.values(), *baseline.values()):
        run["scores"]["pope"] = {"score": 80.0}
    assert compare(row, baseline, both) == {"difference": 5.0, "low": 5.0, "high": 5.0, "resampled": ["seeds"]}


def test_runs_with_different_questions_are_not_compared():
    row, baseline = {0: make_run(0, [1.0], ["a"])}, {0: make_run(0, [1.0], ["b"], row="llava")}
    with pytest.raises(
        UserError, match="evaluated on different questions of t .hawaii, seed 0 and llava, seed 0 are among them"
    ):
        compare(row, baseline, ONE)


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        # 10 steps of 1 s with 4 s of teachers, and 20 of 0.5 s with 2 s of them.
        (
            {
                "pretrain": {"steps": 10, "seconds_per_step": 1.0, "teacher_share": 0.4},
                "finetune": {"steps": 20, "seconds_per_step": 0.5, "teacher_share": 0.2},
            },
            0.3,
        ),
        ({"pretrain": {"steps": 10}}, None),  # too short to be timed
        ({}, None),
    ],
)
def test_the_share_of_the_teachers_is_that_of_all_seconds(stages, expected):
    found = summarize_row({seed: make_run(seed, [1.0]) | {"stages": stages} for seed in (0, 1)}, None, [ONE])
    assert found["teacher_share"] == (None if expected is None else {"mean": pytest.approx(expected), "deviation": 0})
