"""The operations of the paper's training step reach the goals. They are counted, on any machine with equal results."""

import pytest

from hawaii.benchmarks.training.step_flops import measure_flops


@pytest.mark.slow
@pytest.mark.timm
def test_the_goals_of_a_training_step_are_met():
    found = {comparison.subject: comparison for comparison in measure_flops()}
    goals = {subject: comparison for subject, comparison in found.items() if comparison.is_met is not None}
    assert [comparison.at_most for comparison in goals.values()] == [1.30, 1.20, 1.24, 1.18]
    assert all(comparison.is_met for comparison in goals.values()), list(map(str, found.values()))
    assert len(found) == 6
    assert all(1 < comparison.ratio < 1.5 for comparison in found.values())
