"""The three ways to compute the mixture have equal outputs and gradients, and the benchmark prints their ratios."""

import re
import sys

from hawaii.benchmarks import mixture_lora


def test_the_ratios_are_printed(monkeypatch, capsys):
    words = ["mixture_lora.py", "--size", "tiny", "--batch_size", "2", "--rounds", "2"]
    monkeypatch.setattr(sys, "argv", words)
    mixture_lora.main()  # it checks that all are equal
    found = re.findall(r"^(.*) / HAWAII, (.*): \d+\.\d+ \(of 2 pairs", capsys.readouterr().out, re.M)
    parts = ["forward", "forward and backward"]
    assert found == [(way, part) for way in ("torch.where", "chosen tokens") for part in parts]
