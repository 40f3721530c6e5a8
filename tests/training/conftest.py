"""A batch, the trainer's computation on it, and a clock."""

from types import SimpleNamespace

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
    """The two tiny teachers, prepared for each objective, by the objective's class."""
    from hawaii.training.baselines.move_kd import MoveKdObjective
    from hawaii.training.recipes.objectives import OBJECTIVES
    from hawaii.training.teachers.config import TeacherConfig
    from hawaii.training.teachers.loading import load_teachers

    prepared = {objective: teachers if objective.uses_teachers else [] for objective in OBJECTIVES.values()}
    # MoVE-KD's preparation changes a teacher, so it gets copies.
    configs = [TeacherConfig.parse(str(folder)) for folder in teacher_folders.values()]
    return {**prepared, MoveKdObjective: MoveKdObjective.prepare_teachers(load_teachers(configs))}


@pytest.fixture
def run(teachers_of):
    """Runs the teachers and a module on a batch, like the trainer; returns the loss and its terms."""

    def run(module, batch):
        features = [teacher(batch["teacher_images"]) for teacher in teachers_of[type(module.objective)]]
        return module(features, batch)

    return run


@pytest.fixture
def recorded(monkeypatch):
    """Calls of each loss function by the objective: lists of (arguments, result) by the function's name."""
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


@pytest.fixture
def clock(monkeypatch):
    """The clock of every [`TimerCallback`]; the test advances its `now`, in seconds."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr("hawaii.training.callbacks.monotonic", lambda: clock.now)
    return clock
