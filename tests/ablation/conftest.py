"""Fixtures for an ablation whose runs take no time."""

import json
import sys

import pytest

from hawaii.__main__ import main
from hawaii.ablation import run as ablation_run
from hawaii.tests.ablation.world import STAND_IN, World


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.setattr(ablation_run, "HAWAII", (sys.executable, str(STAND_IN), "-m", "hawaii"))
    return World(tmp_path)


@pytest.fixture
def run(world, monkeypatch):
    """A function that runs the command in this process and returns its exit status."""

    def run(words: str, *more: str) -> int:
        monkeypatch.setenv("STAND_IN", json.dumps(world.settings))
        return main([*world.words(words), *more])

    return run
