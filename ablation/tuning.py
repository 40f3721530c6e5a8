"""Tuning: of the same settings, each row gets those with which it answers most validation questions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from ..files.atomic import write_json
from ..files.user_error import UserError
from ..training.recipes.objectives import OBJECTIVES
from ..training.recipes.recipe import Recipe
from ..training.recipes.recipe_yaml import split_override
from .folder import AblationFolder
from .rows import Row, make_recipe, names_of
from .run import Run


FOLDER = "tuning"
TUNING_FILE = "tuning.json"
# Of the runs that choose; those of the table have others.
SEED = 1000


def read_grid(points: Sequence[str]) -> list[dict[str, Any]]:
    """
    Reads the settings to choose from.

    Args:
        points (`Sequence[str]`):
            Each `key=value`, or several of them with spaces between them.

    Raises:
        UserError: a point is something else, empty or repeated.
    """
    grid: list[dict[str, Any]] = []
    for text in points:
        point = dict(split_override(word) for word in text.split())
        if not point or point in grid:
            raise UserError(f"--grid has the point {text!r}, which is empty or repeated.")
        grid.append(point)
    return grid


def points_of(recipe: Recipe, row: Row, grid: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The points of a grid that differ for a row, without the options that its objective does not use."""
    objective = OBJECTIVES[row.options.get("objective", next(iter(recipe.stages.values())).training.objective)]
    own = {option.name for option in fields(objective.options_class)} if objective.uses_teachers else set()
    others = {option.name for each in OBJECTIVES.values() for option in fields(each.options_class)} - own
    points = []
    for point in grid:
        used = {key: value for key, value in point.items() if not names_of([key]) & others}
        if used not in points:
            points.append(used)
    return points


def check_grid(folder: AblationFolder, names: Sequence[str], grid: Sequence[Mapping[str, Any]]) -> None:
    """
    Checks that rows can be tuned.

    Raises:
        UserError: the recipe's last stage evaluates nothing, a setting does not fit a row, or a row decides it itself.
    """
    *_, last = folder.recipe.stages.values()
    if grid and last.data.eval_data_path is None:
        raise UserError(
            "--grid chooses by validation questions, but the recipe's last stage has none: add eval_data_path, "
            "eval_strategy and eval_steps."
        )
    for name in names:
        row = folder.rows[name]
        for point in points_of(folder.recipe, row, grid):
            if both := names_of(point) & names_of(row.options):
                raise UserError(
                    f"--grid would replace {min(both)} of the row {name}, which sets it itself: leave it out of "
                    "--grid, or the row out of --rows."
                )
            make_recipe(folder.recipe, replace(row, options={**row.options, **point}), SEED, folder.path)


def tune(
    folder: AblationFolder,
    names: Sequence[str],
    grid: Sequence[Mapping[str, Any]],
    execute: Callable[[AblationFolder, list[Run]], None],
) -> dict[str, Row]:
    """
    Trains rows with each of the same settings, and chooses by the accuracy on validation questions at the end of
    training; of equal ones the first. A row with one setting needs no training. Writes the accuracies to
    `tuning.json`.

    Args:
        folder (`AblationFolder`):
            Folder of the ablation. The runs are in its subfolder `tuning`.
        names (`Sequence[str]`):
            Rows to tune.
        grid (`Sequence[Mapping[str, Any]]`):
            Settings to choose from, see [`read_grid`].
        execute (`Callable`):
            Executes the runs of a folder that are not done.

    Returns:
        `dict[str, Row]`: all rows of the folder, those of `names` with the chosen settings.

    Raises:
        UserError: a run failed, or was not evaluated at its end.
    """
    points = {name: points_of(folder.recipe, folder.rows[name], grid) for name in names}
    rows = {
        f"{name}-{number}": Row(
            f"{folder.rows[name].label}: {', '.join(f'{key} {value}' for key, value in point.items())}",
            {**folder.rows[name].options, **point},
        )
        for name in names
        for number, point in enumerate(points[name])
    }
    tuning = replace(folder, path=folder.path / FOLDER, rows=rows, evaluation={"tasks": []})
    tried = [name for name in names if len(points[name]) > 1]
    runs = {name: [tuning.make_run(f"{name}-{number}", SEED) for number in range(len(points[name]))] for name in tried}
    execute(tuning, [run for number in range(len(grid)) for name in tried for run in runs[name][number : number + 1]])
    tuned, report = dict(folder.rows), {}
    for name in names:
        accuracies = [_final_accuracy(run) for run in runs.get(name, [])]
        chosen = points[name][accuracies.index(max(accuracies)) if accuracies else 0]
        row = folder.rows[name]
        tuned[name] = Row(row.label, {**row.options, **chosen})
        pairs = [{"options": point, "accuracy": accuracy} for point, accuracy in zip(points[name], accuracies)]
        report[name] = {"chosen": chosen, "tried": pairs}
    write_json(folder.path / TUNING_FILE, {"seed": SEED, "rows": report})
    return tuned


def _final_accuracy(run: Run) -> float:
    results = run.read()
    if not results["curve"] or results["curve"][-1]["step"] != results["steps"]:
        raise UserError(f"{run.folder} was not evaluated after its last step: make eval_steps a divisor of max_steps.")
    return results["curve"][-1]["accuracy"]
