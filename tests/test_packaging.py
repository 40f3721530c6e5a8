"""The contents of an installation."""

import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from hawaii.tests.test_imports import ARROWS


ROOT = Path(__file__).parents[1]
NOT_SOURCES = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "runs", "*.egg-info")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """File names in a wheel that is built from a copy of the tree, in a folder whose name is not an identifier."""
    folder = tmp_path_factory.mktemp("build")
    shutil.copytree(ROOT, folder / "my-clone", ignore=NOT_SOURCES)
    (folder / "my-clone/training/__pycache__").mkdir()
    (folder / "my-clone/training/__pycache__/stale.pyc").touch()
    # Without build isolation nothing is downloaded: the extra `dev` installs setuptools.
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", ".", "./my-clone"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=600)
    return zipfile.ZipFile(next(folder.glob("hawaii_vlm-*.whl"))).namelist()


def test_the_wheel_contains_only_the_package(wheel):
    assert {name.partition("/")[0].partition("-")[0] for name in wheel} == {"hawaii", "hawaii_vlm"}
    assert not [name for name in wheel if {"tests", "benchmarks", "__pycache__"} & set(name.split("/"))]


def test_the_wheel_contains_every_file_of_every_folder(wheel):
    files = [path.relative_to(ROOT) for folder in ARROWS for path in (ROOT / folder).rglob("*")]
    expected = {
        f"hawaii/{file.as_posix()}" for file in files if (ROOT / file).is_file() and "__pycache__" not in file.parts
    }
    assert expected - set(wheel) == set()
    assert {"hawaii/__init__.py", "hawaii/__main__.py"} <= set(wheel)


def test_lmms_eval_finds_the_plugin():
    (plugin,) = entry_points(group="lmms_eval.models", name="hawaii")
    assert plugin.load()().model_id == "hawaii"
