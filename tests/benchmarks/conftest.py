"""Runs the command of a benchmark in this process."""

import re
import sys

import pytest


LINE = re.compile(r"(?P<subject>.+), (?P<first>[^,/]+) / (?P<second>[^/]+): (?P<ratio>\d+\.\d{3}) \((?P<costs>.+)\)")


@pytest.fixture
def run_command(monkeypatch, capsys):
    """Runs the command of a module with options; returns subject, both ways, ratio and costs of each line."""

    def run_command(module, **options):
        flags = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        monkeypatch.setattr(sys, "argv", ["benchmark", *flags])
        module.main()
        described, *lines = capsys.readouterr().out.splitlines()
        assert all(f"{name} {value}" in described for name, value in options.items())
        return [LINE.fullmatch(line).groupdict() for line in lines]

    return run_command
