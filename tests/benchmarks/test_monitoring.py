"""Tests that the benchmark runs."""

import re
import subprocess
import sys
from pathlib import Path


SCRIPT = Path(__file__).parents[2] / "benchmarks" / "monitoring.py"


def test_the_ratio_is_printed():
    command = [sys.executable, SCRIPT, "--size", "tiny", "--batch_size", "2", "--rounds", "11"]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert re.search(r"with monitoring / without: \d+\.\d+ \(of 11 pairs", finished.stdout)
