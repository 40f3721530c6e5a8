"""Tests that the benchmark runs and that scores at label positions need less memory."""

import re
import subprocess
import sys
from pathlib import Path


SCRIPT = Path(__file__).parents[2] / "benchmarks" / "text_loss.py"


def test_scores_at_label_positions_need_less_memory():
    options = {"vocabulary": 2000, "batch_size": 4, "length": 256, "answer": 4, "rounds": 1}
    flags = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    finished = subprocess.run([sys.executable, SCRIPT, *flags], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    labels, every = (float(value) for value in re.findall(r"([\d.]+) MiB", finished.stdout))
    # The scores of every position and their gradient; 4 x 252 positions have no label.
    assert every - labels > 2 * 1008 * 2000 * 4 / 2**20
    assert re.search(r"time: \d+\.\d+ \(of 1 pairs\)", finished.stdout)
