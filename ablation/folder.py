"""The folder of an ablation: its settings, its runs, and the table of the finished ones."""

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import lock_descriptor

from ..files.atomic import read_json, write_json, write_text
from ..files.escape import escape_markdown
from ..files.user_error import UserError
from ..training.recipes.recipe import Recipe, first_difference, read_recipe
from .fingerprints import fingerprints
from .rows import Row, make_recipe
from .run import RECIPE_FILE, Run
from .statistics import summarize
from .table import make_table


RECIPE_COPY = "recipe.yaml"
SETTINGS_FILE = "settings.json"
LOCK_FILE = "ablation.lock"
HINT = "Give another --output_dir, or remove this folder to start over."


@dataclass(frozen=True)
class AblationFolder:
    """
    Args:
        path (`Path`):
            Absolute path of the folder.
        recipe (`Recipe`):
            The recipe of the ablation.
        rows (`Mapping[str, Row]`):
            All rows for the recipe's teachers.
        evaluation (`dict`):
            `tasks`, and `limit`, `data_file` and `data_folder` as for [`evaluate`], if given.
        batch_size (`int`, *optional*):
            Batch size of the evaluation; it changes no score.
        launcher (`str`, *optional*):
            As for [`Run`].
    """

    path: Path
    recipe: Recipe
    rows: Mapping[str, Row]
    evaluation: dict
    batch_size: int | None = None
    launcher: str | None = None

    def make_run(self, name: str, seed: int) -> Run:
        """The run of a row from a seed, finished or not."""
        options = {key: value for key, value in self.evaluation.items() if key != "tasks"}
        if self.batch_size is not None:
            options["batch_size"] = self.batch_size
        return Run(
            row=name,
            label=self.rows[name].label,
            seed=seed,
            folder=self.path / "runs" / name / f"seed-{seed}",
            stages=tuple(self.recipe.stages),
            tasks=self.evaluation["tasks"],
            options=options,
            launcher=self.launcher,
        )

    def with_finished_runs(self, runs: Sequence[Run]) -> list[Run]:
        """These runs, and the finished runs of other rows and seeds in this folder."""
        found = [
            self.make_run(name, int(path.name.removeprefix("seed-")))
            for name in self.rows
            for path in sorted((self.path / "runs" / name).glob("seed-*"))
            if re.fullmatch(r"seed-\d+", path.name)  # not a copy such as seed-0.old
        ]
        requested = {(run.row, run.seed) for run in runs}
        return [*runs, *(run for run in found if run.is_done() and (run.row, run.seed) not in requested)]

    @contextmanager
    def locked(self):
        """
        Locks the folder, so that only one `hawaii ablate` at a time works in it.

        Raises:
            UserError: another one works in it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.path / LOCK_FILE, os.O_RDWR | os.O_CREAT)
        try:
            if not lock_descriptor(lock, blocking=False):
                raise UserError(
                    f"Another `hawaii ablate` is working in {self.path}: wait until it ends. --jobs and --cluster "
                    "execute several runs at once."
                )
            yield
        finally:
            os.close(lock)

    def check_settings(self) -> None:
        """
        Checks that the folder was started with this recipe and evaluation, if it was started before.

        Raises:
            UserError: the folder was started with others; the first difference is named.
        """
        recipe_path, difference = self.path / RECIPE_COPY, None
        settings = self._read_settings()
        if recipe_path.is_file():
            difference = first_difference(
                read_recipe(recipe_path, use_cpu=True), self.recipe.with_options({"seed": 0})
            )
        for key in sorted({*settings.get("evaluation", {}), *self.evaluation}) if settings else ():
            there, here = (
                repr(values[key]) if key in values else "not given"
                for values in (settings["evaluation"], self.evaluation)
            )
            if there != here:
                difference = difference or f"evaluation.{key} is {there} there and {here} here"
        if difference is not None:
            raise UserError(f"{self.path} was started with other settings: {difference}. {HINT}")

    def prepare(self, runs: Sequence[Run]) -> None:
        """
        Checks that the folder was started with this recipe, evaluation and data, and records them.

        If all runs are finished, changed data is accepted, because only the table is written again.

        Raises:
            UserError: the folder was started with others; the first difference is named.
        """
        self.check_settings()
        for run in self.with_finished_runs(runs):
            self._check_recipe(run)
        if all(run.is_done() for run in runs):
            return
        files = fingerprints(self.recipe, self.evaluation.get("data_file"))
        changed = [name for name, value in self._read_settings().get("files", {}).items() if files.get(name) != value]
        if changed and any((self.path / "runs").glob("*/seed-*")):
            raise UserError(f"{self.path} was started with other files: {', '.join(changed)} changed since. {HINT}")
        self.recipe.with_options({"seed": 0}).save(self.path / RECIPE_COPY)
        write_json(self.path / SETTINGS_FILE, {"evaluation": self.evaluation, "files": files})

    def _read_settings(self) -> dict:
        path = self.path / SETTINGS_FILE
        return read_json(path) if path.is_file() else {}

    def _check_recipe(self, run: Run) -> None:
        path = run.folder / RECIPE_FILE
        if path.is_file():
            difference = first_difference(read_recipe(path, use_cpu=True), self.make_recipe(run))
            if difference is not None:
                raise UserError(
                    f"{run.folder} was started with another recipe: {difference}. Give another --output_dir, or "
                    "remove this folder to train it again."
                )

    def make_recipe(self, run: Run) -> Recipe:
        """The recipe of a run, validated."""
        return make_recipe(self.recipe, self.rows[run.row], run.seed, run.folder)

    def write_table(self, runs: Sequence[Run], baseline: str) -> dict | None:
        """
        Writes `ablation.json` and `ablation.md`.

        Args:
            runs (`Sequence[Run]`):
                Requested runs; other finished runs in the folder are added.
            baseline (`str`):
                Row that others are compared with.

        Returns:
            `dict`: the content of `ablation.json`; `None` if no run is finished.
        """
        together = self.with_finished_runs(runs)
        seeds = sorted({run.seed for run in together})
        by_row = {name: [run for run in together if run.row == name] for name in self.rows}
        labels = {name: self.rows[name].label for name, row in by_row.items() if row}
        done = {name: {run.seed: run.read() for run in by_row[name] if run.is_done()} for name in labels}
        if not any(done.values()):
            return None
        ablation = {"recipe": str(self.recipe.path), "limit": None, **self.evaluation}
        ablation |= summarize(done, labels, seeds, baseline)
        write_json(self.path / "ablation.json", ablation)
        write_text(
            self.path / "ablation.md", f"# Ablation of {escape_markdown(self.recipe.name)}\n\n{make_table(ablation)}\n"
        )
        return ablation
