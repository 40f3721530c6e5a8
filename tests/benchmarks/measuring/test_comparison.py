"""Ratios, ranges and goals of a comparison."""

import itertools

import pytest
import torch

from hawaii.benchmarks.measuring.comparison import Comparison, check_equal, compare, measure, show


PAIRS = [(1.0, 2.0), (3.0, 2.0), (2.0, 4.0)]


def test_the_ratio_is_that_of_the_medians_and_the_range_that_of_the_rounds():
    comparison = Comparison("a step", "ours", "theirs", PAIRS)
    assert comparison.medians == (2.0, 2.0)
    assert comparison.ratio == 1.0 and comparison.range == (0.5, 1.5)
    assert str(comparison) == (
        "a step, ours / theirs: 1.000 (2 / 2 ms, medians of 3 rounds whose ratios are 0.500 to 1.500)"
    )


@pytest.mark.parametrize(
    ("goal", "is_met"),
    [({}, None), ({"at_most": 1.0}, True), ({"at_most": 0.99}, False), ({"at_least": 1.01}, False)]
    + [({"at_least": 1.0}, True), ({"at_least": 0.5}, True)],
)
def test_a_goal_is_met_by_the_ratio_that_is_shown(goal, is_met):
    assert Comparison("a step", "ours", "theirs", [(1.004, 1.0)], **goal).is_met is is_met


def test_both_ways_run_alternately():
    calls = []
    functions = [lambda: calls.append("a"), lambda: calls.append("bb")]
    pairs = measure(functions, 3, lambda: float(len("".join(calls))))  # a letter takes a second
    assert calls == ["a", "bb", "bb", "a", "a", "bb"]
    assert pairs == [(1.0, 2.0)] * 3


def test_different_results_are_an_error_before_anything_is_measured():
    with pytest.raises(AssertionError):
        compare("a step", {"ours": lambda: torch.ones(2), "theirs": lambda: torch.zeros(2)}, rounds=1)


def test_seconds_are_converted_to_milliseconds():
    seconds = itertools.count()
    ways = {"ours": lambda: torch.ones(2), "theirs": lambda: torch.ones(2)}
    comparison = compare("a step", ways, 2, lambda: float(next(seconds)), at_most=1.0)
    assert comparison.pairs == [(1000.0, 1000.0)] * 2
    assert comparison.is_met is True


@pytest.mark.parametrize(("pair", "ratio"), [((0.0, 0.0), 1.0), ((2.0, 0.0), float("inf")), ((0.0, 2.0), 0.0)])
def test_counts_may_be_zero(pair, ratio):
    comparison = Comparison("waits", "ours", "theirs", [pair], "waits")
    assert comparison.ratio == ratio and comparison.range == (ratio, ratio)


def test_whole_numbers_such_as_tokens_must_be_equal():
    check_equal({"ours": lambda: torch.tensor([20_000.0]), "theirs": lambda: torch.tensor([20_001.0])})
    with pytest.raises(AssertionError):
        check_equal({"ours": lambda: torch.tensor([20_000]), "theirs": lambda: torch.tensor([20_001])})


@pytest.mark.parametrize(("cost", "text"), [(1234.6, "1,235"), (123.4, "123"), (12.34, "12.3"), (0.01234, "0.0123")])
def test_costs_have_three_digits(cost, text):
    assert show(cost) == text
