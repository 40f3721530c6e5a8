"""Tuning: of the same settings, each row gets those with which it answers most validation questions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..files.atomic import write_json
from ..files.user_error import UserError
from ..training.recipes.objectives import OBJECTIVES
from ..training.recipes.recipe import Recipe
from ..training.recipes.recipe_yaml import split_override
from .folder import AblationFolder
from .rows import Row
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
        UserError: a point is something else, empty, or there twice.
    """
    grid: list[dict[str, Any]] = []
    for text in points:
        point = dict(split_override(word) for word in text.split())
        if not point or point in grid:
            raise UserError(f"--grid has the point {text!r}, which is empty or there twice.")
        grid.append(point)
    return grid


def points_of(recipe: Recipe, row: Row, grid: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The points of a grid that differ for a row: an objective without teachers has no `lambda_1`."""
    objective = row.options.get("objective", next(iter(recipe.stages.values())).training.objective)
    unused = set() if OBJECTIVES[objective].uses_teachers else {"lambda_1"}
    points = []
    for point in grid:
        used = {key: value for key, value in point.items() if key.rpartition(".")[2] not in unused}
        if used not in points:
            points.append(used)
    return points


def tune(
    folder: AblationFolder,
    names: Sequence[str],
    grid: Sequence[Mapping[str, Any]],
    execute: Callable[[AblationFolder, list[Run]], None],
) -> dict[str, Row]:
    """
    Trains rows with each of the same settings, and chooses by the accuracy on validation questions at the end of
    training; of equal ones the first. Writes the accuracies to `tuning.json`.

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
        UserError: the recipe evaluates nothing in its last stage, a setting does not fit a row, or a run failed.
    """
    *_, last = folder.recipe.stages.values()
    if last.data.eval_data_path is None:
        raise UserError(
            "--grid chooses by validation questions, but the recipe's last stage has none: add eval_data_path, "
            "eval_strategy and eval_steps."
        )
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
    runs = {name: [tuning.make_run(f"{name}-{number}", SEED) for number in range(len(points[name]))] for name in names}
    execute(tuning, [run for number in range(len(grid)) for name in names for run in runs[name][number : number + 1]])
    tuned, report = dict(folder.rows), {}
    for name in names:
        curves = [run.read()["curve"] for run in runs[name]]
        if not all(curves):
            raise UserError(
                f"The runs of {name} in {tuning.path} were not evaluated: set eval_steps to max_steps or less."
            )
        accuracies = [curve[-1]["accuracy"] for curve in curves]
        chosen = points[name][accuracies.index(max(accuracies))]
        row = folder.rows[name]
        tuned[name] = Row(row.label, {**row.options, **chosen})
        tried = [{"options": point, "accuracy": accuracy} for point, accuracy in zip(points[name], accuracies)]
        report[name] = {"chosen": chosen, "tried": tried}
    write_json(folder.path / TUNING_FILE, {"seed": SEED, "rows": report})
    return tuned
