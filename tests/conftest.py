"""Fixtures for all tests. No fixture and no test needs a network."""

import atexit
import os
import shutil
import tempfile


# Set before huggingface_hub and transformers are imported, because they read these variables on import.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp()
atexit.register(shutil.rmtree, os.environ["HF_DATASETS_CACHE"], ignore_errors=True)

import pytest  # noqa: E402
import torch  # noqa: E402


# The tests' tensors are tiny: more threads only wait for each other.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def same_random_numbers():
    """The random numbers of a test do not depend on the tests before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def hub_folder(tmp_path_factory):
    """A published folder: a tiny model with random weights, its processor and code. Tests that change it copy it."""
    from hawaii.tests.tiny.models import save_hub_folder

    return save_hub_folder(tmp_path_factory.mktemp("published") / "hub")


@pytest.fixture(scope="session")
def teacher_folders(tmp_path_factory):
    """Folders of two tiny teachers by name, written by `save_pretrained`."""
    from hawaii.tests.tiny.training import save_teachers

    return save_teachers(tmp_path_factory.mktemp("teachers"))


@pytest.fixture(scope="session")
def teachers(teacher_folders):
    """The two tiny teachers, frozen."""
    from hawaii.training.teachers.config import TeacherConfig
    from hawaii.training.teachers.loading import load_teachers

    return load_teachers([TeacherConfig.parse(str(folder)) for folder in teacher_folders.values()])


@pytest.fixture
def hub(monkeypatch):
    """An empty stand-in for the Hub on the loopback interface, which this process uses."""
    from hawaii.tests.tiny.hub_server import TOKEN, serve_hub

    with serve_hub() as server:
        constants = {"ENDPOINT": server.url, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}
        constants["HUGGINGFACE_CO_URL_TEMPLATE"] = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        for name, value in constants.items():
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server
