"""Tests of the confidence interval: known values, coverage and invariances."""

import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from hawaii.metrics.paired_bootstrap import paired_bootstrap as module
from hawaii.metrics.paired_bootstrap.paired_bootstrap import PairedBootstrap, paired_bootstrap, student_t_quantile


def width(result):
    return result["high"] - result["low"]


def each(size):
    """Returns a separate group for each question."""
    return [str(number) for number in range(size)]


def against_zero(differences, groups=None, **kwargs):
    differences = np.asarray(differences, float)
    groups = each(len(differences)) if groups is None else groups
    return paired_bootstrap(differences, np.zeros_like(differences), groups, **kwargs)


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (5, 2.5706), (9, 2.2622), (30, 2.0423)],
)
def test_quantiles_of_students_t_match_the_table(degrees, quantile):
    assert student_t_quantile(0.975, degrees) == pytest.approx(quantile, abs=1e-4)


def test_identical_scores_have_no_difference():
    scores = np.random.default_rng(0).random((50, 3))
    assert paired_bootstrap(scores, scores, each(50)) == {
        "difference": 0.0,
        "low": 0.0,
        "high": 0.0,
        "num_seeds": 3,
        "num_groups": 50,
    }


def test_questions_that_are_hard_for_both_do_not_widen_the_interval():
    baseline = np.random.default_rng(0).random((50, 3))
    found = paired_bootstrap(baseline + 0.25, baseline, each(50))
    assert found["difference"] == pytest.approx(0.25)
    assert (found["low"], found["high"]) == (pytest.approx(0.25), pytest.approx(0.25))


def test_the_interval_shifts_and_changes_sign_with_the_difference():
    differences = np.random.default_rng(0).normal(size=(40, 3))
    found, moved, turned = (against_zero(values) for values in (differences, differences + 1, -differences))
    assert moved["low"] == pytest.approx(found["low"] + 1) and moved["high"] == pytest.approx(found["high"] + 1)
    assert turned["low"] == pytest.approx(-found["high"]) and turned["high"] == pytest.approx(-found["low"])


def test_a_draw_of_groups_is_the_mean_of_their_questions():
    # All 27 draws of three groups of one, two and three questions, each as likely as the others.
    differences, groups = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 9.0]), np.array(list("abbccc"))
    members = {name: differences[groups == name] for name in "abc"}
    exact = [np.concatenate([members[name] for name in draw]).mean() for draw in product("abc", repeat=3)]
    draws = module._draws_of_groups(differences, groups, 27_000, np.random.default_rng(0))
    values, counts = np.unique(np.round(exact, 9), return_counts=True)
    found, found_counts = np.unique(np.round(draws, 9), return_counts=True)
    np.testing.assert_allclose(found, values)
    np.testing.assert_allclose(found_counts / 1000, counts, atol=0.15)


def test_with_one_seed_the_interval_is_that_of_a_mean():
    differences = np.random.default_rng(0).normal(size=(1000, 1))
    standard_error = differences.std() / np.sqrt(1000)
    assert width(against_zero(differences)) == pytest.approx(2 * 1.96 * standard_error, rel=0.05)


def test_with_equal_questions_the_interval_is_about_students():
    generator, ratios = np.random.default_rng(0), []
    for _ in range(200):
        seeds = generator.normal(size=3)
        ratios.append(
            width(against_zero([seeds])) / (2 * student_t_quantile(0.975, 2) * seeds.std(ddof=1) / np.sqrt(3))
        )
    assert np.mean(ratios) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("num_seeds", [2, 3, 5])
@pytest.mark.parametrize(
    ("of_seeds", "of_images", "of_answers"), [(1.0, 0.0, 0.0), (0.0, 1.0, 0.3), (0.1, 1.0, 0.5), (0.3, 1.0, 1.0)]
)
def test_the_coverage_is_the_confidence(num_seeds, of_seeds, of_images, of_answers):
    # 60 images with 3 questions each; what differs with seeds, with images, and with both.
    generator, held, num_trials = np.random.default_rng(0), 0, 300
    groups = np.repeat(np.arange(60), 3).astype(str)
    for _ in range(num_trials):
        images = np.repeat(generator.normal(size=(60, 1)), 3, axis=0)
        differences = of_seeds * generator.normal(size=num_seeds) + of_images * images
        differences = differences + of_answers * generator.normal(size=(180, num_seeds))
        found = against_zero(differences, groups, num_draws=500)
        held += found["low"] <= 0 <= found["high"]
    # The standard error of 300 trials is 0.013; where answers vary with both, it is on the safe side.
    assert held / num_trials >= 0.90
    if of_answers == 0:
        assert held / num_trials <= 0.98


def test_questions_about_one_image_are_not_independent():
    images = np.repeat(np.random.default_rng(0).normal(size=(50, 1)), 8, axis=0)
    together, apart = against_zero(images, np.repeat(each(50), 8)), against_zero(images)
    assert width(together) == pytest.approx(width(apart) * np.sqrt(8), rel=0.1)


def test_each_task_has_the_same_weight():
    differences = np.array([[1.0]] * 90 + [[0.0]] * 10)
    tasks = ["large"] * 90 + ["small"] * 10
    assert against_zero(differences)["difference"] == pytest.approx(0.9)
    found = against_zero(differences, tasks=tasks)
    assert found["difference"] == found["low"] == found["high"] == 0.5


def test_groups_of_different_tasks_are_distinct():
    found = against_zero(np.ones((4, 1)), groups=["0", "1", "0", "1"], tasks=["a", "a", "b", "b"])
    assert found["num_groups"] == 4


def test_a_small_task_widens_the_interval_of_the_mean():
    generator = np.random.default_rng(0)
    large, small = generator.normal(size=(2000, 1)), generator.normal(size=(20, 1))
    found = against_zero(np.concatenate([large, small]), tasks=["large"] * 2000 + ["small"] * 20)
    expected = np.sqrt(large.var() / 2000 + small.var() / 20) / 2
    assert width(found) == pytest.approx(2 * 1.96 * expected, rel=0.1)


def test_one_seed_and_one_group_have_no_interval():
    assert against_zero([[1.0], [0.0]], groups=["a", "a"]) == {
        "difference": 0.5,
        "low": None,
        "high": None,
        "num_seeds": 1,
        "num_groups": 1,
    }


def test_the_interval_is_reproducible_for_every_memory_limit(monkeypatch):
    differences = np.random.default_rng(0).normal(size=(30, 3))
    found = against_zero(differences)
    assert against_zero(differences) == found
    assert against_zero(differences, random_seed=1) != found
    monkeypatch.setattr(module, "MAX_WEIGHTS", 1)
    assert against_zero(differences) == pytest.approx(found)


@pytest.mark.parametrize(
    ("scores", "baseline", "groups", "tasks", "message"),
    [
        ([[1.0]], [[1.0], [0.0]], ["a"], None, r"are \(1, 1\) and the baseline's \(2, 1\)"),
        ([[1.0, 0.0]], [[1.0]], ["a"], None, r"are \(1, 2\) and the baseline's \(1, 1\)"),
        ([], [], [], None, "one row for each question"),
        ([[1.0]], [[1.0]], [], None, "1 questions, 0 groups and 1 tasks"),
        ([[1.0]], [[1.0]], ["a"], ["t", "t"], "1 questions, 1 groups and 2 tasks"),
    ],
)
def test_inconsistent_arguments_are_refused(scores, baseline, groups, tasks, message):
    with pytest.raises(ValueError, match=message):
        paired_bootstrap(scores, baseline, groups, tasks)


SCORES = {"scores": [[1, 1], [1, 1], [1, 0]], "baseline_scores": [[0, 0], [1, 1], [0, 0]], "groups": ["a", "a", "b"]}


def test_the_module_equals_the_function():
    found = PairedBootstrap().compute(**SCORES)
    assert found == paired_bootstrap(**SCORES)
    assert found["difference"] == 0.5
    assert PairedBootstrap().compute(**SCORES, tasks=["t", "t", "u"], confidence=0.5)["difference"] == 0.5


def test_the_module_loads_offline_from_its_folder_and_writes_nothing(tmp_path):
    folder = Path(module.__file__).parent
    code = (
        "import evaluate\n"
        f"comparison = evaluate.load({str(folder)!r}, module_type='comparison')\n"
        f"print(comparison.compute(**{SCORES!r})['difference'])"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert finished.stdout == "0.5\n", finished.stderr
    assert not list(tmp_path.rglob("*.arrow"))
