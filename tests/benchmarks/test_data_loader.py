"""Tests that the benchmark runs, which also checks that both ways to make a sample give equal pixels."""

import re
import subprocess
import sys
from pathlib import Path


SCRIPT = Path(__file__).parents[2] / "benchmarks" / "data_loader.py"


def test_the_ratios_are_printed():
    command = [sys.executable, SCRIPT, "--image_size", "56", "--teacher_image_size", "96", "--rounds", "1"]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert len(re.findall(r": \d+\.\d+ \(.* ms / .* ms", finished.stdout)) == 4
