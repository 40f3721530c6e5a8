"""Tests that the benchmark runs."""

import re
import subprocess
import sys
from pathlib import Path


SCRIPT = Path(__file__).parents[2] / "benchmarks" / "vision_tower.py"


def test_the_ratios_are_printed():
    command = [sys.executable, SCRIPT, "--size", "tiny", "--batch_size", "2", "--rounds", "1"]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert len(re.findall(r": \d+\.\d+ \(of 1 pairs", finished.stdout)) == 2
