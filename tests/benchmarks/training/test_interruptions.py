"""Tests that the benchmark counts a killed run as exact, and a run with other numbers as not exact."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


SCRIPT = Path(__file__).parents[3] / "benchmarks" / "training" / "interruptions.py"


@pytest.mark.slow
def test_runs_that_are_killed_end_exactly():
    command = [sys.executable, SCRIPT, "kill", "--kills", "2", "--pairs", "1", "--steps", "2"]
    finished = subprocess.run(
        command, capture_output=True, text=True, timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    ends = [line for line in finished.stdout.splitlines() if line.startswith("killed, ")]
    assert len(ends) == 2
    assert "'kills': 2" in ends[0] and "'kills of exact runs': 2" in ends[0]
    assert "'kills': 1" in ends[1] and "'kills of exact runs': 1" in ends[1]
