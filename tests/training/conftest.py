"""A batch, and the objective run on it as the trainer does."""

import pytest

from hawaii.tests.tiny.models import make_processor
from hawaii.tests.tiny.training import RAGGED, make_batch


@pytest.fixture(scope="session")
def processor():
    return make_processor()


@pytest.fixture
def batch(tmp_path, processor):
    """An image with one question, text alone, an image with two questions."""
    return make_batch(tmp_path / "batch", RAGGED, processor)


@pytest.fixture(scope="session")
def teachers_of(teachers, teacher_folders):
    """The two tiny teachers as each objective asks them, by its class."""
    from hawaii.training.baselines.move_kd import MoveKdObjective
    from hawaii.training.recipes.objectives import OBJECTIVES
    from hawaii.training.teachers.config import TeacherConfig
    from hawaii.training.teachers.loading import load_teachers

    asked = {kind: teachers if kind.uses_teachers else [] for kind in OBJECTIVES.values()}
    # What MoVE-KD asks changes a teacher, so it has its own.
    configs = [TeacherConfig.parse(str(folder)) for folder in teacher_folders.values()]
    return {**asked, MoveKdObjective: MoveKdObjective.prepare_teachers(load_teachers(configs))}


@pytest.fixture
def run(teachers_of):
    """Runs a module on a batch as the trainer does, the teachers first; gives the loss and the terms."""

    def run(module, batch):
        features = [teacher(batch["teacher_images"]) for teacher in teachers_of[type(module.objective)]]
        return module(features, batch)

    return run


@pytest.fixture
def recorded(monkeypatch):
    """What the objective gave each loss, and what it got: lists of (arguments, result) by the loss's name."""
    from hawaii.training.objectives import hawaii as hawaii_objective

    calls = {}

    def record(name, function):
        def spy(*args):
            result = function(*args)
            calls.setdefault(name, []).append((args, result))
            return result

        monkeypatch.setattr(hawaii_objective, name, spy)

    for name in ("token_importance", "fine_grained_loss", "coarse_grained_loss", "load_balance_loss"):
        record(name, getattr(hawaii_objective, name))
    return calls
