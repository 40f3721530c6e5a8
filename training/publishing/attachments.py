"""The files that a model card shows: the recipe and the losses."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ...drawing.curves import draw_losses
from ...drawing.style import has_matplotlib
from ...files.run_contents import CURVES_FILE, RECIPE_FILE
from ..recipes.recipe import Recipe
from .public_recipe import write_public_recipe


def attach_files(folder: Path, plan: Recipe, logs: Mapping[str, Sequence[Mapping]]) -> None:
    """
    Writes the files that a card shows into a folder. Without matplotlib, which is optional, there is no picture of the
    losses.

    Args:
        folder (`Path`):
            The folder.
        plan (`Recipe`):
            The recipe of the run.
        logs (`Mapping[str, Sequence[Mapping]]`):
            Entries of the log of each stage.
    """
    write_public_recipe(plan, folder / RECIPE_FILE)
    figure = draw_losses(logs) if has_matplotlib() else None
    if figure is not None:
        # Without the version of matplotlib, the same numbers are the same bytes.
        figure.savefig(folder / CURVES_FILE, format="png", dpi=150, metadata={"Software": None})
