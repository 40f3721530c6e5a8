"""One run of an ablation: a row's recipe trained from one seed and evaluated, in separate processes."""

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from filelock import lock_descriptor

from ..evaluation.lmms.process import shown_lines
from ..files.atomic import read_json, remove_folder, write_json, write_text
from ..files.run_contents import HUB_FOLDER, LOG_FILE, RESULTS_FILE
from ..files.user_error import UserError
from ..training.callbacks import read_log
from ..training.data.processes import end_with_parent
from .scores import read_scores


RECIPE_FILE = "recipe.yaml"
RUN_FILE = "run.json"
QUESTIONS_FILE = "questions.json"
RUN_LOG = "run.log"
PROMPT = "$ "  # precedes each command in the log
LOCK_FILE = "run.lock"
HAWAII = (sys.executable, "-m", "hawaii")
# Time to end after SIGTERM, which torch's launcher forwards to its workers, before SIGKILL.
GRACE_SECONDS = 30.0
POLL_SECONDS = 0.1


def read_curve(folder: Path, stages: Mapping[str, dict]) -> list[dict]:
    """
    Reads the evaluations during training of all stages.

    Args:
        folder (`Path`):
            Folder of the run.
        stages (`Mapping[str, dict]`):
            `steps` and `seconds` of each stage.

    Returns:
        `list[dict]`: `step`, `seconds` and `accuracy` of each evaluation, counted from the start of the first stage.
    """
    curve, steps, seconds = [], 0, 0.0
    for stage, report in stages.items():
        path = folder / stage / LOG_FILE
        for entry in read_log(path) if path.is_file() else []:
            if "eval_accuracy" in entry:
                point = {"step": steps + entry["step"], "seconds": round(seconds + entry["train_seconds"], 3)}
                curve.append({**point, "accuracy": entry["eval_accuracy"]})
        steps, seconds = steps + report["steps"], seconds + report["seconds"]
    return curve


def read_step_times(folder: Path, stages: Mapping[str, dict]) -> dict[str, dict[str, float]]:
    """
    Reads how long a step of each stage takes: the median over the log's intervals, without the first one, in which a
    process gets ready.

    Args:
        folder (`Path`), stages (`Mapping[str, dict]`):
            As for [`read_curve`], with the `batch_size` of each stage.

    Returns:
        `dict[str, dict[str, float]]`: for each stage `steps`, `seconds_per_step` and `teacher_share`, the share of the
            teachers in it. Without a second interval only the steps.
    """
    times = {}
    for stage, report in stages.items():
        path = folder / stage / LOG_FILE
        entries = [entry for entry in (read_log(path) if path.is_file() else []) if "samples_per_second" in entry][1:]
        times[stage] = {"steps": report["steps"]}
        if entries:
            rate = median(entry["samples_per_second"] for entry in entries)
            times[stage]["seconds_per_step"] = round(report["batch_size"] / rate, 4)
            times[stage]["teacher_share"] = round(median(entry.get("teacher_share", 0.0) for entry in entries), 4)
    return times


def last_line(log: Path) -> str:
    """Returns the error of the last command in a log: the message of `hawaii`, or else the last line."""
    output = log.read_bytes().decode(errors="replace").rpartition(f"\n{PROMPT}")[2].partition("\n")[2]
    lines = shown_lines(output)
    return next((line for line in reversed(lines) if line.startswith("hawaii ")), lines[-1] if lines else "nothing")


@dataclass(frozen=True)
class Run:
    """
    A run. It can be pickled and executed in another process.

    Args:
        row (`str`), label (`str`), seed (`int`):
            Row of the table and seed.
        folder (`Path`):
            Absolute path of its folder, which contains its recipe.
        stages (`tuple[str, ...]`):
            Names of the recipe's stages.
        tasks (`list[str]`):
            Tasks of the evaluation; with none, the run is only trained.
        options (`dict`):
            `limit`, `batch_size`, `data_file` and `data_folder` of [`evaluate`], if given.
        launcher (`str`, *optional*):
            Command that starts training on several devices, such as `accelerate launch --num_processes 8`.
        working_folder (`Path`):
            Folder that relative paths of the recipe refer to.
        program (`tuple[str, ...]`):
            Command line of `hawaii`.
    """

    row: str
    label: str
    seed: int
    folder: Path
    stages: tuple[str, ...]
    tasks: list[str]
    options: dict
    launcher: str | None = None
    working_folder: Path = field(default_factory=Path.cwd)
    program: tuple[str, ...] = field(default_factory=lambda: HAWAII)

    def __str__(self):
        return f"{self.row}, seed {self.seed}"

    @property
    def log(self) -> Path:
        return self.folder / RUN_LOG

    def is_done(self) -> bool:
        return (self.folder / RUN_FILE).is_file()

    def read(self) -> dict:
        """Reads the results of a finished run, including the scores of its questions."""
        results = read_json(self.folder / RUN_FILE)
        return {**results, "questions": read_json(self.folder / QUESTIONS_FILE)}

    def summary(self) -> str:
        """Formats the scores and training time of a finished run in one line."""
        results = read_json(self.folder / RUN_FILE)
        scores = ", ".join(f"{task} {scores['score']:.1f}" for task, scores in results["scores"].items())
        if not scores and results["curve"]:
            scores = f"{100 * results['curve'][-1]['accuracy']:.1f} % of the validation questions"
        return ", ".join(filter(None, [scores, f"{results['train_seconds']:.0f} s of training"]))

    def training_command(self) -> list[str]:
        program = [*shlex.split(self.launcher), *self.program[1:]] if self.launcher else self.program
        return [*program, "train", str(self.folder / RECIPE_FILE)]

    def evaluation_command(self, num_processes: int) -> list[str]:
        command = [*self.program, "evaluate", str(self.folder / HUB_FOLDER)]
        command += ["--tasks", ",".join(self.tasks), "--output_dir", str(self.folder)]
        for name, value in self.options.items():
            command += [f"--{name}", str(value)]
        return command + (["--num_processes", str(num_processes)] if num_processes > 1 else [])

    def execute(self, environment: Mapping[str, str], num_threads: int | None = None, num_processes: int = 1) -> None:
        """
        Trains and evaluates. Continues from the files of an earlier attempt.

        Args:
            environment (`Mapping[str, str]`):
                Environment of both processes.
            num_threads (`int`, *optional*):
                CPU threads of a process, unless a launcher starts it or the environment sets `OMP_NUM_THREADS`.
            num_processes (`int`, *optional*, defaults to 1):
                Processes that evaluate, each on one device.

        Raises:
            UserError: a process failed; the message includes the error in its log.
        """
        threads = {} if num_threads is None else {"OMP_NUM_THREADS": str(num_threads)}
        alone = {**threads, **environment}
        lock = self._lock()
        try:
            if not (self.folder / HUB_FOLDER).is_dir():  # training writes it last
                self._start(self.training_command(), environment if self.launcher else alone, lock, "Training")
            if self.tasks:
                self._start(self.evaluation_command(num_processes), alone, lock, "Evaluation")
            self._write_results()
        finally:
            os.close(lock)

    def stop(self) -> None:
        """Sends SIGTERM to the processes of the run on this machine, if there are any."""
        self._signal(signal.SIGTERM)

    def _lock(self) -> int:
        """
        Locks the folder and returns the descriptor of the lock. If a process of an earlier attempt, whose parent was
        killed, still has the lock, it is ended first, or waited for if it is on another machine.
        """
        lock = os.open(self.folder / LOCK_FILE, os.O_RDWR | os.O_CREAT)
        number, end = signal.SIGTERM, time.monotonic() + GRACE_SECONDS
        while not lock_descriptor(lock, blocking=False):
            self._signal(number)
            number = signal.SIGKILL if time.monotonic() > end else 0
            time.sleep(POLL_SECONDS)
        os.truncate(lock, 0)  # the earlier attempt has ended: its number may soon be another process's
        return lock

    def _signal(self, number: int) -> None:
        path = self.folder / LOCK_FILE
        machine, _, group = (path.read_text() if path.is_file() else "").partition(" ")
        if group and machine == socket.gethostname():
            try:
                os.killpg(int(group), number)
            except ProcessLookupError:
                pass  # already ended

    def _start(self, command: list[str], environment: Mapping[str, str], lock: int, purpose: str) -> None:
        with open(self.log, "ab") as log:
            log.write(f"\n{PROMPT}{shlex.join(command)}\n".encode())
            log.flush()
            # In a new session, one signal reaches all processes of the command. They inherit the lock, which is thus
            # held until the last of them ends, even if this process is killed. The training of a lost Ray worker would
            # otherwise keep a GPU that Ray considers free.
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=self.working_folder,
                start_new_session=True,
                preexec_fn=end_with_parent,
                pass_fds=(lock,),
            )
        os.truncate(lock, 0)
        os.pwrite(lock, f"{socket.gethostname()} {process.pid}".encode(), 0)
        status = process.wait()
        self._signal(signal.SIGTERM)  # to processes left by a failed launcher
        os.truncate(lock, 0)
        if status != 0:
            raise UserError(
                f"{purpose} ended with exit code {status}; the last line of {self.log}: {last_line(self.log)}"
            )

    def _write_results(self) -> None:
        """Writes the results for the table, then removes the files that only a resume needs."""
        training = read_json(self.folder / RESULTS_FILE)
        steps = sum(stage["steps"] for stage in training["stages"].values())
        scores, questions = read_scores(self.folder) if self.tasks else ({}, {})
        write_text(self.folder / QUESTIONS_FILE, json.dumps(questions, separators=(",", ":")))
        write_json(
            self.folder / RUN_FILE,
            {
                "row": self.row,
                "label": self.label,
                "seed": self.seed,
                "scores": scores,
                "steps": steps,
                "train_seconds": training["train_seconds"],
                "seconds_per_step": round(training["train_seconds"] / steps, 4),
                "num_parameters": training["num_parameters"],
                "stages": read_step_times(self.folder, training["stages"]),
                "curve": read_curve(self.folder, training["stages"]),
            },
        )
        self.remove_large_files()

    def remove_large_files(self) -> None:
        """
        Removes checkpoints and models of the stages and temporary files of evaluations; keeps logs and, if the run is
        evaluated, `hub`.
        """
        if not self.tasks and (self.folder / HUB_FOLDER).is_dir():
            remove_folder(self.folder / HUB_FOLDER)
        for folder in self.folder.glob("evaluate-*"):
            shutil.rmtree(folder, ignore_errors=True)
        for stage in self.stages:
            for folder in [*(self.folder / stage).glob("checkpoint-*"), *(self.folder / stage).glob("model*")]:
                if folder.name.endswith(".old"):
                    shutil.rmtree(folder, ignore_errors=True)
                elif folder.is_dir():
                    remove_folder(folder)
