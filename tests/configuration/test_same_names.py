"""Local folders of the same name in one process never mix their code, although transformers knows their names only."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from hawaii.tests.folders import TRANSFORMERS_VERSIONS


SCRIPT = Path(__file__).with_name("load_same_names.py")


@pytest.fixture(scope="module")
def folders(hub_folder, tmp_path_factory):
    """Two folders named `hub` with the same model and code of two versions, each of whose files has a mark."""
    folders = [tmp_path_factory.mktemp(mark) / "hub" for mark in ("first", "second")]
    for mark, folder in zip(("first", "second"), folders):
        shutil.copytree(hub_folder, folder)
        for path in folder.glob("*_hawaii.py"):
            text = re.sub('"[0-9a-f]{16}"', f'"{mark:_>16}"', path.read_text())
            path.write_text(f"{text}\nMARK = {mark!r}\n")
    return folders


def load(python, folders, tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HF_"))}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "PYTHONSAFEPATH": "1"}
    options = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "timeout": 600}
    finished = subprocess.run([python, SCRIPT, *folders], **options)
    assert finished.returncode == 0, finished.stderr[-4000:]
    return finished.stdout.splitlines()


def test_transformers_5_runs_the_code_of_each_folder(folders, tmp_path):
    first, second = folders
    lines = load(TRANSFORMERS_VERSIONS["transformers5"], [first, first, second, first], tmp_path)
    assert lines == ["first", "second", "first"]


def test_transformers_4_refuses_the_second_folder_and_keeps_the_first(folders, tmp_path):
    first, second = folders
    lines = load(TRANSFORMERS_VERSIONS["transformers4"], [first, second, first, second], tmp_path)
    package = "transformers_modules.hub"
    for line in lines[::2]:
        assert "is loaded already, with code of another version than transformers_modules.hub." in line
        assert "rename one or load them in two processes" in line
    assert lines[0].split()[0] in {f"{package}.{path.stem}" for path in first.glob("*_hawaii.py")}
    assert lines[1] == "first"
