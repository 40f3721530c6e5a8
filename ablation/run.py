"""One run of an ablation: a row's recipe trained from one seed, evaluated, and what is kept of it."""

import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from ..evaluation.lmms.process import shown_lines
from ..files.atomic import remove_folder, write_json, write_text
from ..files.run_contents import HUB_FOLDER, LOG_FILE, RESULTS_FILE
from ..files.user_error import UserError
from .rows import write_recipe
from .scores import read_scores


RECIPE_FILE = "recipe.yaml"
RUN_FILE = "run.json"
QUESTIONS_FILE = "questions.json"
LOG = "run.log"
PROMPT = "$ "  # before each command in it
FAILURE_FILE = "failure.json"


NOT_GIVEN = object()
# What a run starts.
HAWAII = (sys.executable, "-m", "hawaii")


class RunFailed(ValueError):
    """A process of a run ended before its work was done."""


def first_difference(found, wanted, place: str = "") -> str | None:
    """Where two settings differ first, as `place is 1 there and 2 here`."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = [*wanted, *(key for key in found if key not in wanted)]
        differences = (
            first_difference(
                found.get(key, NOT_GIVEN), wanted.get(key, NOT_GIVEN), f"{place}.{key}" if place else str(key)
            )
            for key in keys
        )
        return next((difference for difference in differences if difference is not None), None)
    if found == wanted:
        return None
    there, here = ("not given" if value is NOT_GIVEN else repr(value) for value in (found, wanted))
    return f"{place} is {there} there and {here} here"


def read_curve(folder: Path, stages: Mapping[str, dict]) -> list[dict]:
    """
    What training measured of itself, over all stages.

    Args:
        folder (`Path`):
            Of the run.
        stages (`Mapping[str, dict]`):
            `steps` and `seconds` of each.

    Returns:
        `list[dict]`: `step`, `seconds` and `accuracy` of each evaluation, counted from the start of the first stage.
    """
    curve, steps, seconds = [], 0, 0.0
    for stage, report in stages.items():
        path = folder / stage / LOG_FILE
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        for entry in map(json.loads, lines):
            if "eval_accuracy" in entry:
                point = {"step": steps + entry["step"], "seconds": round(seconds + entry["train_seconds"], 3)}
                curve.append({**point, "accuracy": entry["eval_accuracy"]})
        steps, seconds = steps + report["steps"], seconds + report["seconds"]
    return curve


def last_words(log: Path) -> str:
    """What the last command in a log says in the end: the sentence of `hawaii` rather than what its launcher adds."""
    _, _, said = log.read_bytes().decode(errors="replace").rpartition(f"\n{PROMPT}")[2].partition("\n")
    lines = shown_lines(said)
    return next((line for line in reversed(lines) if line.startswith("hawaii ")), lines[-1] if lines else "nothing")


@dataclass(frozen=True, eq=False)
class Run:
    """
    Args:
        row (`str`), label (`str`), seed (`int`):
            What it is a run of.
        folder (`Path`):
            Its own.
        recipe (`dict`):
            As [`make_recipe`] gives it.
        tasks (`list[str]`):
            What it is evaluated on.
        options (`dict`):
            `limit`, `batch_size`, `data_file` and `data_folder` of [`evaluate`], as far as they are given.
        launcher (`str`, *optional*):
            Command that starts training on several devices, such as `accelerate launch --num_processes 8`.
    """

    row: str
    label: str
    seed: int
    folder: Path
    recipe: dict
    tasks: list[str]
    options: dict
    launcher: str | None = None

    def __str__(self):
        return f"{self.row}, seed {self.seed}"

    @property
    def log(self) -> Path:
        return self.folder / LOG

    def is_done(self) -> bool:
        return (self.folder / RUN_FILE).is_file()

    def read(self) -> dict:
        """What is kept of it once it is done, the scores of its questions among it."""
        kept = json.loads((self.folder / RUN_FILE).read_text(encoding="utf-8"))
        return {**kept, "questions": json.loads((self.folder / QUESTIONS_FILE).read_text(encoding="utf-8"))}

    def summary(self) -> str:
        """Its scores, in a few words."""
        kept = json.loads((self.folder / RUN_FILE).read_text(encoding="utf-8"))
        scores = ", ".join(f"{task} {scores['score']:.1f}" for task, scores in kept["scores"].items())
        return f"{scores}, {kept['train_seconds']:.0f} s of training"

    def check(self) -> None:
        """
        Makes sure that what is in the folder, if anything, was begun with the same recipe.

        Raises:
            ValueError: it was not.
        """
        path = self.folder / RECIPE_FILE
        if path.is_file():
            found = yaml.safe_load(path.read_text(encoding="utf-8"))
            # The folder itself may have been moved.
            difference = first_difference({**found, "output_dir": None}, {**self.recipe, "output_dir": None})
            if difference is not None:
                raise UserError(
                    f"{self.folder} was begun with another recipe: {difference}. Give another --output_dir, or remove "
                    "this folder to train it again."
                )

    def failed_since(self, start: float) -> str | None:
        """Why it failed, if it did after this time, in whichever process."""
        path = self.folder / FAILURE_FILE
        failure = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"time": 0.0}
        return failure["reason"] if failure["time"] >= start else None

    def note_failure(self, reason: str) -> None:
        write_json(self.folder / FAILURE_FILE, {"time": time.time(), "reason": reason})

    def _start(self, command: list[str], environment: Mapping[str, str], descriptor: int) -> subprocess.Popen:
        with open(self.log, "ab") as log:
            log.write(f"\n{PROMPT}{shlex.join(command)}\n".encode())
            log.flush()
            # In a session of its own, so that all that it starts can be ended with it.
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
                pass_fds=(descriptor,),
            )

    def _check_process(self, process: subprocess.Popen, what: str) -> None:
        if process.returncode != 0:
            raise RunFailed(
                f"{what} ended with exit code {process.returncode}; {self.log} says at last: {last_words(self.log)}"
            )

    def training_command(self) -> list[str]:
        program = [*shlex.split(self.launcher), *HAWAII[1:]] if self.launcher else HAWAII
        return [*program, "train", str(self.folder / RECIPE_FILE)]

    def evaluation_command(self, num_processes: int) -> list[str]:
        command = [*HAWAII, "evaluate", str(self.folder / HUB_FOLDER)]
        command += ["--tasks", ",".join(self.tasks), "--output_dir", str(self.folder)]
        for name, value in self.options.items():
            command += [f"--{name}", str(value)]
        return command + (["--num_processes", str(num_processes)] if num_processes > 1 else [])

    def steps(
        self,
        training_environment: Mapping[str, str],
        evaluation_environment: Mapping[str, str],
        num_processes: int,
        descriptor: int,
    ) -> Iterator[tuple[str, subprocess.Popen]]:
        """
        Starts one process after another; go on when it has ended.

        Args:
            training_environment, evaluation_environment (`Mapping[str, str]`):
                Of the processes.
            num_processes (`int`):
                That answer questions.
            descriptor (`int`):
                Of the claim, which they hold as well.

        Yields:
            What the process does, and the process.

        Raises:
            RunFailed: it ended with an error.
        """
        (self.folder / FAILURE_FILE).unlink(missing_ok=True)
        write_recipe(self.folder / RECIPE_FILE, self.recipe)  # also where there is one: the folder may have been moved
        if not (self.folder / HUB_FOLDER).is_dir():  # training makes it last, and whole
            process = self._start(self.training_command(), training_environment, descriptor)
            yield "training", process
            self._check_process(process, "Training")
        process = self._start(self.evaluation_command(num_processes), evaluation_environment, descriptor)
        yield "evaluating", process
        self._check_process(process, "Evaluation")
        self._finish()

    def _finish(self) -> None:
        """Writes what the tables need, then removes what only a resume would."""
        training = json.loads((self.folder / RESULTS_FILE).read_text(encoding="utf-8"))
        steps = sum(stage["steps"] for stage in training["stages"].values())
        scores, questions = read_scores(self.folder)
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
                "curve": read_curve(self.folder, training["stages"]),
            },
        )
        self.remove_what_is_large()

    def remove_what_is_large(self) -> None:
        """
        Of a finished run: the checkpoints and models of its stages, and what an evaluation that was killed left. The
        published folder and all logs stay.
        """
        for folder in self.folder.glob("evaluate-*"):
            shutil.rmtree(folder, ignore_errors=True)
        for stage in self.recipe["stages"]:
            for folder in [*(self.folder / stage).glob("checkpoint-*"), *(self.folder / stage).glob("model*")]:
                if folder.name.endswith(".old"):
                    shutil.rmtree(folder, ignore_errors=True)
                elif folder.is_dir():
                    remove_folder(folder)
