"""A batch, and the objective run on it as the trainer does."""

import pytest

from hawaii.tests.tiny import make_processor
from hawaii.tests.tiny_training import RAGGED, make_batch


@pytest.fixture(scope="session")
def processor():
    return make_processor()


@pytest.fixture
def batch(tmp_path, processor):
    """An image with one question, text alone, an image with two questions."""
    return make_batch(tmp_path / "batch", RAGGED, processor)


@pytest.fixture
def run(teachers):
    """Runs a module on a batch as the trainer does, the teachers first; gives the loss and the terms."""

    def run(module, batch):
        features = [teacher(batch["teacher_images"]) for teacher in teachers]
        return module(features, batch)

    return run


@pytest.fixture
def recorded(monkeypatch):
    """What the objective gave each loss, and what it got: lists of (arguments, result) by the loss's name."""
    from hawaii.training import objectives

    calls = {}

    def record(name, function):
        def spy(*args):
            result = function(*args)
            calls.setdefault(name, []).append((args, result))
            return result

        monkeypatch.setattr(objectives, name, spy)

    for name in ("token_importance", "fine_grained_loss", "coarse_grained_loss", "load_balance_loss"):
        record(name, getattr(objectives, name))
    return calls
