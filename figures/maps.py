"""A table of images with maps of their patches."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from ..drawing.style import SETTINGS, matplotlib_or_error


def _draw_map(axis: Any, square: Image.Image, weights: np.ndarray, covered: float = 1.0) -> None:
    """
    Draws the weights of patches over an image, and below it their range relative to the mean weight.

    Args:
        axis (`matplotlib.axes.Axes`):
            Panel to draw in.
        square (`PIL.Image.Image`):
            Square image.
        weights (`np.ndarray` of shape `(side, side)`):
            A weight for each patch, row by row.
        covered (`float`, *optional*, defaults to 1.0):
            Share of the image's side that the patches cover from the upper left corner.
    """
    relative = weights / weights.mean()
    height = (relative - relative.min()) / max(np.ptp(relative), 1e-6)
    axis.imshow(square.convert("L"), cmap="gray", extent=(0, 1, 0, 1), vmin=-64, vmax=255)
    # Small weights are more transparent, so that the image remains visible.
    extent = (0, covered, 1 - covered, 1)
    axis.imshow(height, cmap="inferno", alpha=0.4 + 0.5 * height, extent=extent, interpolation="nearest")
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1)
    axis.set_xlabel(f"{relative.min():.1f} to {relative.max():.1f} × mean", labelpad=2)


def draw_maps(
    squares: Sequence[Image.Image],
    maps: Sequence[Sequence[tuple[Any, float]]],
    titles: Sequence[str],
    size: tuple[float, float],
    captions: Sequence[str] | None = None,
) -> Any:
    """
    Draws a row for each image: the image and its maps.

    Args:
        squares (`Sequence[PIL.Image.Image]`):
            The square images.
        maps (`Sequence[Sequence[tuple]]`):
            For each image, its maps: weights of shape `(side, side)`, and the share of the image's side that their
            patches cover from the upper left corner. A row may have fewer than there are titles.
        titles (`Sequence[str]`):
            Titles of the columns, of which the first has the images.
        size (`tuple[float, float]`):
            Width and height of the figure in inches.
        captions (`Sequence[str]`, *optional*):
            A text below each image.

    Returns:
        `matplotlib.figure.Figure`

    Raises:
        UserError: matplotlib is not installed.
    """
    matplotlib = matplotlib_or_error()
    with matplotlib.rc_context(SETTINGS):
        figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
        axes = figure.subplots(len(squares), len(titles), squeeze=False)
        for axis, title in zip(axes[0], titles):
            axis.set_title(title, pad=3)
        for (first, *others), square, row in zip(axes, squares, maps):
            first.imshow(square, extent=(0, 1, 0, 1))
            for axis, (weights, covered) in zip(others, row):
                _draw_map(axis, square, np.array(weights), covered)
            for axis in others[len(row) :]:
                axis.set_visible(False)
        for axis, caption in zip(axes[:, 0], captions or []):
            axis.set_xlabel(caption, labelpad=2)
        for axis in axes.flat:
            axis.set_xticks([])
            axis.set_yticks([])
    return figure
