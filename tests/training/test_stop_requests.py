"""A command with workers ends after every signal and every error, and no worker survives it."""

import os
import re
import select
import signal
import subprocess
import sys

import pytest
import torch
from torch.utils.data import DataLoader

from hawaii.tests.tiny.answers import make_question, save_questions
from hawaii.tests.tiny.training import write_recipe
from hawaii.tests.tiny.waiting import HANG_SECONDS, wait_until_gone
from hawaii.training.stop_requests import StopRequests


# Executes the commands that it reads from stdin, each in a fork that ends as an interpreter does. In the first call of
# the function `PLACE`, or in the second one of training, `ACTION` is done.
SCRIPT = """
import multiprocessing, os, signal, sys, time
import torch
from hawaii.__main__ import main
from hawaii.files.user_error import UserError
from hawaii.training import trainer
from hawaii.training.checking import check, pool, rows
from hawaii.training.teacher_cache import build
from hawaii.training.train import train
torch.set_num_threads(1)
PLACES = {
    "step": (trainer.HawaiiTrainer, "training_step", 2),
    "answer": (trainer, "answer_questions", 1),
    "check": (pool, "wait", 1),
    "cache": (build.FeatureWriter, "add", 1),
}

reads = multiprocessing.Event()

def read_slowly(self, index):
    reads.set()
    time.sleep(1000)

def workers():
    return [process.pid for process in multiprocessing.active_children()]

def out_of_memory():
    raise torch.OutOfMemoryError("CUDA out of memory.")

def refuse():
    raise UserError("a bad record")

def leave():
    sys.exit(3)

def ctrl_c():
    os.killpg(0, signal.SIGINT)
    time.sleep(0.1)

def end_job():
    for process in [*workers(), os.getpid()]:
        os.kill(process, signal.SIGTERM)

def quit():
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGQUIT)

def act(place, action):
    owner, name, number = PLACES[place]
    original, calls = getattr(owner, name), 0

    def replacement(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == number:
            if place == "check":
                reads.wait()
            print("workers:", *workers(), flush=True)
            action()
        return original(*args, **kwargs)

    setattr(owner, name, replacement)

for line in sys.stdin:
    log, place, action, *words = line.split()
    reads.clear()
    process = os.fork()
    if process == 0:
        os.setpgrp()
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), 1)
        os.dup2(1, 2)
        rows.AllRows.inspect = read_slowly
        os.environ["HAWAII_DEBUG"] = str(int("debug" in words))
        act(place, globals()[action])
        sys.exit(main([word for word in words if word != "debug"]))
    print(process, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
"""


class Commands:
    """Executes commands with the script above."""

    def __init__(self, log):
        self._log = log
        self._process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,  # `select` sees no buffer
        )

    def _read_number(self) -> int:
        assert select.select([self._process.stdout], [], [], HANG_SECONDS)[0], f"it hangs: {self._log.read_text()}"
        return int(self._process.stdout.readline())

    def execute(self, place: str, action: str, *words) -> tuple[int, list[str]]:
        """Returns the exit status and the lines of the output, after all workers have ended."""
        self._log.unlink(missing_ok=True)
        self._process.stdin.write(" ".join(map(str, [self._log, place, action, *words])).encode() + b"\n")
        process = self._read_number()
        try:
            status = self._read_number()
        except BaseException:
            os.kill(process, signal.SIGKILL)
            raise
        output = self._log.read_text()
        (workers,) = re.findall("workers: (.+)$", output, re.M)
        for worker in map(int, workers.split()):
            wait_until_gone(worker)
        lines = [line for line in re.split("[\r\n]+", output) if line.strip()]
        assert not [line for line in lines if "DataLoader worker (pid" in line]
        return status, lines

    def check(self, place: str, action: str, status: int, line: str, *words) -> None:
        """Asserts the exit status and the start of the last line; only a bug, status 1, shows a traceback."""
        ended, lines = self.execute(place, action, *words)
        assert (ended, lines[-1][: len(line)]) == (status, line)
        assert ("Traceback (most recent call last):" in lines) == (status == 1)

    def close(self):
        self._process.stdin.close()
        self._process.wait(HANG_SECONDS)
        self._process.stdout.close()


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    commands = Commands(tmp_path_factory.mktemp("commands") / "log")
    yield commands
    commands.close()


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, teacher_folders):
    """A recipe with two workers for each data loader."""
    folder = tmp_path_factory.mktemp("world")
    stages = {"pretrain": {"chat_template": "plain", "trainable": ["projector"]}, "finetune": {}}
    return write_recipe(folder, teacher_folders, stages=stages, max_steps=4, dataloader_num_workers=2)


@pytest.fixture(scope="module")
def questions(tmp_path_factory, recipe):
    """Options for an evaluation in the second stage."""
    path = save_questions(recipe.parent, [make_question(number, "red") for number in range(4)])
    key = "stages.finetune"
    return [
        f"{key}.eval_data_path={path}",
        f"{key}.eval_strategy=steps",
        f"{key}.eval_steps=1",
        "stages.pretrain.max_steps=1",
    ]


SLOW = pytest.mark.slow  # the worker imports torch
INTERRUPTED = "Interrupted: the same command continues from the last checkpoint."
STOPPED = "Training was stopped by SIGTERM after step 2 of 4, so the stage is not finished: the same command continues"


@pytest.mark.parametrize(
    ("action", "words", "status", "line"),
    [
        ("out_of_memory", [], 1, "torch.OutOfMemoryError: CUDA out of memory."),
        ("out_of_memory", ["dataloader_persistent_workers=true"], 1, "torch.OutOfMemoryError: CUDA out of memory."),
        ("refuse", [], 2, "hawaii train: a bad record"),
        ("leave", [], 3, ""),
        ("ctrl_c", [], 130, f"hawaii train: {INTERRUPTED}"),
        ("ctrl_c", ["debug"], 1, "KeyboardInterrupt"),
        ("end_job", [], 75, f"hawaii train: {STOPPED}"),
        ("quit", [], -signal.SIGQUIT, ""),
    ],
)
def test_training_with_workers_ends(commands, recipe, tmp_path, action, words, status, line):
    commands.check("step", action, status, line, "train", recipe, f"output_dir={tmp_path}", *words)


@pytest.mark.parametrize(
    ("action", "status", "line"),
    [
        ("out_of_memory", 1, "torch.OutOfMemoryError: CUDA out of memory."),
        ("ctrl_c", 130, f"hawaii train: {INTERRUPTED}"),
        ("end_job", 75, f"hawaii train: {STOPPED}"),
    ],
)
def test_an_evaluation_with_workers_ends(commands, recipe, questions, tmp_path, action, status, line):
    commands.check("answer", action, status, line, "train", recipe, f"output_dir={tmp_path}", *questions)


@pytest.mark.parametrize(
    ("action", "status", "line"),
    [
        ("out_of_memory", 1, "torch.OutOfMemoryError: CUDA out of memory."),
        ("ctrl_c", 130, "hawaii cache: Interrupted: the same command computes the missing features."),
        ("quit", -signal.SIGQUIT, ""),
    ],
)
def test_a_cache_with_workers_ends(commands, recipe, tmp_path, action, status, line):
    commands.check("cache", action, status, line, "cache", recipe, "--output_dir", tmp_path)


@pytest.mark.parametrize(
    ("action", "status", "line"), [("ctrl_c", 130, "hawaii check: Interrupted."), ("quit", -signal.SIGQUIT, "")]
)
def test_a_check_ends_in_the_middle_of_a_row(commands, recipe, tmp_path, action, status, line):
    command = ["check", recipe, f"output_dir={tmp_path}", "--num_processes", 1]
    commands.check("check", action, status, line, *command)


@pytest.mark.parametrize("method", ["fork", *(pytest.param(name, marks=SLOW) for name in ("spawn", "forkserver"))])
def test_workers_ignore_a_signal_until_the_run_ends(method):
    with StopRequests() as requests:
        loader = DataLoader(range(40), num_workers=1, multiprocessing_context=method)
        batches = iter(requests.protect_workers(loader))
        first = next(batches)
        (worker,) = batches._workers
        os.kill(worker.pid, signal.SIGTERM)
        os.kill(worker.pid, signal.SIGUSR1)
        assert torch.cat([first, *(next(batches) for _ in range(30))]).tolist() == list(range(31))
        assert worker.is_alive()
    worker.terminate()
    worker.join(HANG_SECONDS)
    assert worker.exitcode == 0


@pytest.mark.slow
def test_a_launcher_that_a_signal_ends_makes_its_run_save_a_checkpoint(recipe, tmp_path):
    """accelerate's launcher of one process does not pass signals on; torch's passes all on but SIGUSR1."""
    options = "--num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no --cpu".split()
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", *options, "-m", "hawaii", "train"]
    command += [str(recipe), f"output_dir={tmp_path / 'run'}", "max_steps=100000", "save_strategy=no"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        lines = iter(process.stdout.readline, "")
        assert any("'loss'" in line for line in lines)
        process.send_signal(signal.SIGUSR1)
        rest = process.stdout.read()  # to the end of the run, which outlives its launcher
    finally:
        process.kill()
    (line,) = re.findall(r"^hawaii train: Training was stopped by SIGTERM .*$", rest, re.M)
    (checkpoint,) = (tmp_path / "run" / "pretrain").glob("checkpoint-*")
    assert line.endswith(f"the same command continues from {checkpoint}.")
    assert process.wait(HANG_SECONDS) == -signal.SIGUSR1
