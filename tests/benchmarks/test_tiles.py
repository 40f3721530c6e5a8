"""Tests that the benchmark finds equal outputs and prints all ratios."""

import re
import subprocess
import sys
from pathlib import Path

import pytest


SCRIPT = Path(__file__).parents[2] / "benchmarks" / "tiles.py"


@pytest.mark.parametrize("feature_layer", [-2, -1])
def test_the_ratios_are_printed(feature_layer):
    command = [sys.executable, SCRIPT, "--size", "tiny", "--rounds", "1", "--feature_layer", str(feature_layer)]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    pattern = r"^(a wide|a high|a square|four) image.*, (features|prefill|generate): \d+\.\d+ \(of 1 pairs"
    assert len(re.findall(pattern, finished.stdout, flags=re.MULTILINE)) == 12
