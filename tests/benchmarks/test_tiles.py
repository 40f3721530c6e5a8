"""Tests that the benchmark finds equal outputs and prints all ratios."""

import re
import subprocess
import sys
from pathlib import Path


SCRIPT = Path(__file__).parents[2] / "benchmarks" / "tiles.py"


def test_the_ratios_are_printed():
    command = [sys.executable, SCRIPT, "--size", "tiny", "--rounds", "1", "--feature_layer", "-1"]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    pattern = r"^(a wide|a high|a square|four) image.*, (features|prefill|generate): \d+\.\d+ \(of 1 pairs"
    assert len(re.findall(pattern, finished.stdout, flags=re.MULTILINE)) == 12
