"""Equal seconds: each row gets as many steps as take the same time as those of the slowest row."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from ..files.atomic import read_json, write_json
from ..files.user_error import UserError
from ..training.recipes.arguments import HawaiiTrainingArguments
from .folder import AblationFolder
from .rows import Row, names_of
from .run import Run


FOLDER = "timing"
MATCHING_FILE = "matching.json"
MATCHES = ("steps", "seconds", "student_seconds")
NUM_STEPS, LOGGING_STEPS = 40, 5
# Each row is timed several times, all rows in turn: the speed of a machine changes.
ROUNDS = (0, 1, 2)
MAX_EVALUATIONS = 10  # of a stage with other steps
# Training alone is timed.
TIMED = {
    "eval_data_path": None,
    "eval_strategy": "no",
    "eval_on_start": False,
    "load_best_model_at_end": False,
    "save_steps": NUM_STEPS,
    "logging_strategy": "steps",
    "logging_steps": LOGGING_STEPS,
}


def match_seconds(
    folder: AblationFolder,
    names: Sequence[str],
    match: str,
    execute: Callable[[AblationFolder, list[Run]], None],
) -> dict[str, Row]:
    """
    Times a step of rows in each stage, one run after the other, and sets their steps so that each stage takes the
    seconds that the recipe's steps take with the slowest row. Writes the times to `matching.json`; a later command
    with other rows keeps the seconds of the first.

    Args:
        folder (`AblationFolder`):
            Folder of the ablation. The timed runs are in its subfolder `timing`.
        names (`Sequence[str]`):
            Rows to match.
        match (`str`):
            `seconds`, or `student_seconds` without those of the teachers, as if their features were cached.
        execute (`Callable`):
            Executes the runs of a folder that are not done, one at a time.

    Returns:
        `dict[str, Row]`: all rows of the folder, those of `names` with their steps.

    Raises:
        UserError: a stage of the recipe has no `max_steps`, a row sets it itself, or a run failed.
    """
    stages = folder.recipe.stages
    for name, stage in stages.items():
        if stage.training.max_steps < 1:
            raise UserError(
                f"--match {match} needs the steps of each stage, but stage {name} has no max_steps: add it."
            )
    for name in names:
        if "max_steps" in names_of(folder.rows[name].options):
            raise UserError(f"--match {match} sets max_steps, but the row {name} sets it itself: leave the row out.")
    options: dict[str, Any] = {f"stages.{stage}.max_steps": NUM_STEPS for stage in stages}
    options |= {f"stages.{stage}.{key}": value for stage in stages for key, value in TIMED.items()}
    rows = {name: replace(folder.rows[name], options={**folder.rows[name].options, **options}) for name in names}
    timing = replace(folder, path=folder.path / FOLDER, rows=rows, evaluation={"tasks": []})
    runs = {name: [timing.make_run(name, number) for number in ROUNDS] for name in names}
    execute(timing, [runs[name][number] for number in ROUNDS for name in names])

    key = "seconds" if match == "seconds" else "student_seconds"
    times = {name: {stage: _median_of(runs[name], stage) for stage in stages} for name in names}
    path = folder.path / MATCHING_FILE
    report = read_json(path) if path.is_file() else {"match": match}
    if report["match"] != match:
        raise UserError(f"{path} is of --match {report['match']}: give the same, or another --output_dir.")
    slowest = {stage: max(times[name][stage][key] for name in names) for stage in stages}
    slowest = report.get("seconds_per_step", slowest)
    matched = dict(folder.rows)
    for name in names:
        options = {**matched[name].options}
        for stage, settings in stages.items():
            scaled = _scale(settings.training, slowest[stage] / times[name][stage][key])
            times[name][stage]["steps"] = scaled["max_steps"]
            options |= {f"stages.{stage}.{option}": value for option, value in scaled.items()}
        matched[name] = replace(matched[name], options=options)
    write_json(path, {"match": match, "seconds_per_step": slowest, "rows": times})
    return matched


def _median_of(runs: Sequence[Run], stage: str) -> dict[str, float]:
    """Seconds of a step, and those of the student alone: the median over the rounds."""
    found = [run.read()["stages"][stage] for run in runs]
    seconds = median(times["seconds_per_step"] for times in found)
    share = median(times["teacher_share"] for times in found)
    return {"seconds": round(seconds, 4), "student_seconds": round(seconds * (1 - share), 4)}


def _scale(training: HawaiiTrainingArguments, factor: float) -> dict[str, int]:
    """
    The numbers of steps, and of steps between evaluations, of a stage with `factor` times as many steps. The last
    evaluation is at the end, and there are as many as before, but at most `MAX_EVALUATIONS`.
    """
    steps = max(1, round(training.max_steps * factor))
    has_interval = training.eval_strategy == "steps" and training.eval_steps is not None and training.eval_steps >= 1
    if factor == 1 or not has_interval:
        return {"max_steps": steps}
    number = min(MAX_EVALUATIONS, max(1, int(training.max_steps // training.eval_steps)), steps)
    return {"max_steps": steps // number * number, "eval_steps": steps // number}
