"""Tests that the benchmark runs."""

import re
import subprocess
import sys
from pathlib import Path


SCRIPT = Path(__file__).parents[3] / "benchmarks" / "training" / "training_data.py"


def test_seconds_and_memory_of_two_starts_are_printed():
    command = [sys.executable, SCRIPT, "--num_records", "400", "--num_batches", "12"]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert len(re.findall(r"data set: \d+\.\d+ s, [+-]\d+ MiB", finished.stdout)) == 2
    assert len(re.findall(r"after 12 batches: \d+\.\d and \d+\.\d MiB", finished.stdout)) == 2
