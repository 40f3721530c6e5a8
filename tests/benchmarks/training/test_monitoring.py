"""Monitoring changes no loss, and steps with it are compared with those without."""

from hawaii.benchmarks.training import monitoring


def test_ten_steps_are_compared(run_command):
    (found,) = run_command(monitoring, size="tiny", batch_size=2, rounds=2)
    assert (found["first"], found["second"]) == ("with monitoring", "without")
    assert found["subject"].startswith("10 training steps")
    assert "medians of 2 rounds" in found["costs"]
