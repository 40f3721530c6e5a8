"""Tests that the benchmark runs, and that the features that it reads are close to those that it computes."""

import re
import subprocess
import sys
from pathlib import Path


SCRIPT = Path(__file__).parents[2] / "benchmarks" / "teacher_cache.py"


def test_the_ratios_and_the_bytes_are_printed():
    command = [sys.executable, SCRIPT, "--size", "tiny", "--batch_size", "8", "--rounds", "1"]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    cosines = re.findall(r"\(of 1 pairs .*; cosine (\d\.\d+), of a cell at least (\d\.\d+)", finished.stdout)
    assert len(cosines) == 2 and all(float(value) > 0.999 for pair in cosines for value in pair)
    assert 0.49 < float(re.search(r"bytes of bfloat16: (\d\.\d+)", finished.stdout)[1]) < 0.52
