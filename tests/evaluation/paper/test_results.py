"""Tests of the paper's table, its averages and the row of a checkpoint."""

import pytest

from hawaii.evaluation.paper.benchmarks import BENCHMARKS
from hawaii.evaluation.paper.results import PAPER_ROWS, average, paper_scores, table


# Table 2's rows that Table 1 does not have.
FGKD = (59.0, 52.5, 63.1, 70.1, 86.6, 1532.1, 66.8, 36.7, 54.6, 66.3)
TOKEN_SCORING = (59.1, 52.5, 62.8, 70.2, 87.4, 1541.7, 67.3, 35.9, 56.1, 67.0)


@pytest.mark.parametrize(
    ("row", "printed"),
    [
        (PAPER_ROWS["LLaVA-1.5"], 61.9),
        (dict(zip(BENCHMARKS, FGKD)), 63.2),
        (dict(zip(BENCHMARKS, TOKEN_SCORING)), 63.5),
        (PAPER_ROWS["HAWAII"], 63.7),
    ],
)
def test_the_averages_are_those_that_the_paper_prints(row, printed):
    assert round(average(row), 1) == printed


def test_a_row_without_all_benchmarks_has_no_average():
    assert average(PAPER_ROWS["MoVE-KD"]) is None


def test_fractions_become_percent_and_points_do_not_change():
    measured = {
        "seedbench": {"seed_image": 0.75},
        "mmbench_en_dev_static": {"gpt_eval_score": 64.3},
        "mme": {"mme_perception_score": 1510.7, "mme_cognition_score": 300},
        "pope": {"pope_accuracy": 0.9, "pope_f1_score": 0.875},
        "gqa": {"exact_match": 0.625, "num_questions": 8},
        "easy_vqa": {"accuracy": 0.9},
    }
    expected = {"gqa": 62.5, "pope": 87.5, "mme": 1510.7, "mmbench_en_dev_static": 64.3, "seedbench": 75}
    assert list(paper_scores(measured).items()) == list(expected.items())


def test_a_benchmark_without_scored_questions_has_no_score():
    assert paper_scores({"mme": {"mme_cognition_score": 300}}) == {}


def test_the_table_ends_with_the_checkpoints_row():
    lines = table("mine", dict(PAPER_ROWS["LLaVA-1.5"])).splitlines()
    assert lines[0].split() == [
        *("|", "|", "VQA-Text", "|", "VizWiz", "|", "GQA", "|", "SQA", "|", "POPE", "|", "MME", "|", "MMBench", "|"),
        *("MMMU", "|", "AI2D", "|", "SeedBench-I", "|", "average", "|"),
    ]
    assert lines[2].split()[1::2] == ["LLaVA-1.5", *lines[-1].split()[3::2]]
    assert lines[-1].split()[1] == "mine" and lines[-1].split()[-2] == "61.9"
    assert len({len(line) for line in lines}) == 1


def test_a_table_of_some_benchmarks_has_their_columns_in_the_papers_order():
    lines = table("mine", {"pope": 80.0, "gqa": 60.0}).splitlines()
    assert lines[0].split() == ["|", "|", "GQA", "|", "POPE", "|"]
    assert lines[4].split() == ["|", "HAWAII", "|", "62.8", "|", "87.3", "|"]
    assert lines[-1].split() == ["|", "mine", "|", "60.0", "|", "80.0", "|"]
