"""The folder of an ablation: its runs, all of one recipe and one evaluation, and the table of those that are done."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from ..files.atomic import write_json, write_text
from ..files.user_error import UserError
from .claim import Claim
from .files import fingerprints
from .rows import Row, make_recipe
from .run import Run, first_difference
from .statistics import summarize
from .table import make_table


SETTINGS_FILE = "settings.yaml"
CLAIM_FILE = "ablation.lock"


@dataclass(frozen=True)
class AblationFolder:
    """
    Args:
        path (`Path`):
            Where it is, or will be.
        recipe (`Path`):
            What is ablated.
        stages (`dict[str, dict]`):
            What [`read_recipe`] gives of it.
        rows (`Mapping[str, Row]`):
            All that there are for its teachers.
        evaluation (`dict`):
            `tasks`, and `limit`, `data_file` and `data_folder` as for [`evaluate`], as far as they are given.
        batch_size (`int`, *optional*):
            Of the evaluation; it changes no score.
        launcher (`str`, *optional*):
            As for [`Run`].
    """

    path: Path
    recipe: Path
    stages: dict[str, dict]
    rows: Mapping[str, Row]
    evaluation: dict
    batch_size: int | None = None
    launcher: str | None = None

    def make_run(self, name: str, seed: int) -> Run:
        """The run of a row from a seed, done or not."""
        folder = self.path / "runs" / name / f"seed-{seed}"
        options = {key: value for key, value in self.evaluation.items() if key != "tasks"}
        if self.batch_size is not None:
            options["batch_size"] = self.batch_size
        return Run(
            row=name,
            label=self.rows[name].label,
            seed=seed,
            folder=folder,
            recipe=make_recipe(self.stages, self.rows[name], seed, folder),
            tasks=self.evaluation["tasks"],
            options=options,
            launcher=self.launcher,
        )

    def with_those_done(self, runs: Sequence[Run]) -> list[Run]:
        """These runs, and those that were done here for other rows and from other seeds."""
        found = [
            self.make_run(name, int(path.name.removeprefix("seed-")))
            for name in self.rows
            for path in sorted((self.path / "runs" / name).glob("seed-*"))
            if re.fullmatch(r"seed-\d+", path.name)  # no copy that somebody keeps beside them
        ]
        asked = {(run.row, run.seed) for run in runs}
        return [*runs, *(run for run in found if run.is_done() and (run.row, run.seed) not in asked)]

    def claim_settings(self, runs: Sequence[Run]) -> None:
        """
        Makes sure that all that is here is of this recipe, this evaluation and the same files, and will be.

        Where all that is asked for is done already, files may have changed since: only the table is made anew.

        Raises:
            ValueError: it was begun with others.
        """
        path = self.path / SETTINGS_FILE
        stages = {name: {**options, "seed": None} for name, options in self.stages.items()}
        settings = {"evaluation": self.evaluation, "stages": stages}
        way_out = "Give another --output_dir, or remove this folder to start over."
        with Claim(self.path / CLAIM_FILE):
            found = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
            files = found.pop("files", {})
            difference = first_difference(found or settings, settings)
            if difference is not None:
                raise UserError(f"{self.path} was begun with other settings: {difference}. {way_out}")
            for run in self.with_those_done(runs):
                run.check()
            if all(run.is_done() for run in runs):
                return
            settings["files"] = fingerprints(self.stages, self.evaluation.get("data_file"))
            changed = [name for name, value in files.items() if settings["files"].get(name) != value]
            if changed and any((self.path / "runs").glob("*/seed-*")):
                raise UserError(
                    f"{self.path} was begun with other files: {', '.join(changed)} changed since. {way_out}"
                )
            write_text(path, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))

    def write_table(self, runs: Sequence[Run], baseline: str) -> dict | None:
        """
        Writes `ablation.json` and `ablation.md`.

        Args:
            runs (`Sequence[Run]`):
                That there should be; others that are done join them.
            baseline (`str`):
                The row that others are compared with.

        Returns:
            `dict`: what `ablation.json` holds; `None` where no run is done.
        """
        with Claim(self.path / CLAIM_FILE):
            together = self.with_those_done(runs)
            seeds = sorted({run.seed for run in together})
            kept = {name: [run for run in together if run.row == name] for name in self.rows}
            labels = {name: self.rows[name].label for name, row in kept.items() if row}
            done = {name: {run.seed: run.read() for run in kept[name] if run.is_done()} for name in labels}
            if not any(done.values()):
                return None
            ablation = {"recipe": str(self.recipe), "limit": None, **self.evaluation}
            ablation |= summarize(done, labels, seeds, baseline)
            write_json(self.path / "ablation.json", ablation)
            write_text(self.path / "ablation.md", f"# Ablation of {self.recipe.stem}\n\n{make_table(ablation)}\n")
        return ablation
