"""Tests that the benchmark runs."""

import re
import subprocess
import sys
from pathlib import Path


SCRIPT = Path(__file__).parents[3] / "benchmarks" / "training" / "long_conversations.py"


def test_the_seconds_of_each_length_are_printed():
    command = [sys.executable, SCRIPT, "--num_turns", "20", "60", "--rounds", "1"]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert re.findall(r"(\d+) turns: \d+\.\d+ s", finished.stdout) == ["20", "60"]
