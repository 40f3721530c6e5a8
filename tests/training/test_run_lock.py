"""One run at a time uses a folder, and nothing in it is at the place of a folder."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from hawaii.__main__ import main
from hawaii.files.run_contents import LOCK_FILE
from hawaii.files.user_error import UserError
from hawaii.tests.folders import contents
from hawaii.tests.tiny.training import write_recipe
from hawaii.training.run_lock import RunLock


# Locks a folder, forks a process that survives it, as a data loader's worker may, and waits for its end.
OTHER_RUN = """
import os, sys, time
from pathlib import Path
from hawaii.training.run_lock import RunLock
with RunLock(Path(sys.argv[1]), []):
    worker = os.fork()
    if worker:
        print(worker, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def other_run(tmp_path):
    """Another process that uses `tmp_path / "run"`, and a process that it forked."""
    process = subprocess.Popen([sys.executable, "-c", OTHER_RUN, tmp_path / "run"], stdout=subprocess.PIPE, text=True)
    worker = int(process.stdout.readline())
    yield process
    os.kill(worker, signal.SIGKILL)
    process.kill()
    process.communicate()


def test_a_second_run_is_refused_until_the_first_is_killed(other_run, tmp_path, teacher_folders, capsys):
    recipe = str(write_recipe(tmp_path, teacher_folders, max_steps=1))
    before = contents(tmp_path)
    assert main(["train", recipe]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"hawaii train: {tmp_path / 'run'} is used by another `hawaii train` (process {other_run.pid} on "
        f"{socket.gethostname()}): wait until it has ended, stop it, or name another output_dir."
    )
    assert contents(tmp_path) == before
    other_run.kill()
    other_run.wait()
    assert main(["train", recipe]) == 0
    assert (tmp_path / "run" / LOCK_FILE).read_bytes() == b""


@pytest.mark.parametrize("has_content", [False, True])
def test_a_folder_is_free_after_an_error_and_gone_if_it_is_empty(tmp_path, has_content):
    run = tmp_path / "run"
    for _ in range(2):
        with pytest.raises(UserError, match="a bad record"), RunLock(run, []):
            if has_content:
                (run / "finetune").mkdir(exist_ok=True)
            raise UserError("a bad record")
    assert run.exists() == has_content
    assert contents(run) == ({LOCK_FILE: b""} if has_content else {})


@pytest.mark.parametrize("obstacle", ["run", "run/finetune", "run/finetune/model", "run/hub"])
def test_a_file_at_the_place_of_a_folder_is_named_before_training(tmp_path, teacher_folders, capsys, obstacle):
    recipe = str(write_recipe(tmp_path, teacher_folders))
    (tmp_path / obstacle).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / obstacle).write_text("a file")
    before = contents(tmp_path)
    assert main(["train", recipe]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"hawaii train: {tmp_path / obstacle} is not a folder, but the run needs a folder there: move it away, or "
        "name another output_dir."
    )
    assert contents(tmp_path) == before


def test_a_file_above_the_folder_of_a_run_is_named(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    for obstacle in ("file", "link"):
        with pytest.raises(UserError, match=f"^{tmp_path / obstacle} is not a folder, but the run needs"):
            with RunLock(tmp_path / obstacle / "run", []):
                pass
