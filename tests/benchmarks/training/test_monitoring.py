"""Monitoring changes no loss, and a step with it is compared with one without."""

from hawaii.benchmarks.training import monitoring


def test_the_step_is_compared(run_command):
    (found,) = run_command(monitoring, size="tiny", batch_size=2, rounds=11)
    assert (found["first"], found["second"]) == ("with monitoring", "without")
    assert "medians of 11 rounds" in found["costs"]
