"""A table of images with maps of their patches."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..drawing.style import SETTINGS, matplotlib_or_error
from ..hub_cards.space.hawaii_space.tiles import assemble_picture
from ..processing.images_hawaii import to_planes


def size_of(picture: Image.Image) -> torch.Tensor:
    """Returns the height and width of a picture as `image_sizes`, of shape `(1, 2)`."""
    return torch.tensor([[picture.height, picture.width]])


def assemble_whole(
    image_processor: Any, picture: Image.Image, patch_size: int, side: int | None = None, resample: int | None = None
) -> Image.Image:
    """
    Assembles a picture from its tiles, see [`assemble_picture`].

    Args:
        image_processor (`HawaiiImageProcessor`):
            One that cuts pictures into tiles.
        picture (`PIL.Image.Image`):
            An upright picture in RGB.
        patch_size (`int`):
            Side of a patch, in pixels of a tile.
        side (`int`, *optional*), resample (`int`, *optional*):
            Side of a tile, in pixels, and the filter; those of the image processor if not given.
    """
    side = image_processor.tile_size if side is None else side
    squares = torch.stack([to_planes(square) for square in image_processor.square_images(picture, side, resample)])
    return assemble_picture(image_processor, squares, size_of(picture), patch_size)


def panel_heights(pictures: Sequence[Image.Image], width: float) -> list[float]:
    """Returns the height of each row of panels: that of the picture in the panel's width, at most this width."""
    return [width * min(1.0, picture.height / picture.width) for picture in pictures]


def _extent(picture: Image.Image) -> tuple[float, float]:
    """Returns the width and height of a picture whose longer side is one."""
    return picture.width / max(picture.size), picture.height / max(picture.size)


def _draw_map(axis: Any, picture: Image.Image, weights: np.ndarray, covered: float = 1.0) -> None:
    """
    Draws the weights of patches over an image, and below it their range relative to the mean weight.

    Args:
        axis (`matplotlib.axes.Axes`):
            Panel to draw in.
        picture (`PIL.Image.Image`):
            The image.
        weights (`np.ndarray` of shape `(rows, columns)`):
            A weight for each patch, row by row.
        covered (`float`, *optional*, defaults to 1.0):
            Share of the image's sides that the patches cover from the upper left corner.
    """
    width, height = _extent(picture)
    relative = weights / weights.mean()
    level = (relative - relative.min()) / max(np.ptp(relative), 1e-6)
    axis.imshow(picture.convert("L"), cmap="gray", extent=(0, width, 0, height), vmin=-64, vmax=255)
    # Small weights are more transparent, so that the image remains visible.
    extent = (0, covered * width, (1 - covered) * height, height)
    axis.imshow(level, cmap="inferno", alpha=0.4 + 0.5 * level, extent=extent, interpolation="nearest")
    axis.set_xlim(0, width)
    axis.set_ylim(0, height)
    axis.set_xlabel(f"{relative.min():.1f} to {relative.max():.1f} × mean", labelpad=2)


def draw_maps(
    pictures: Sequence[Image.Image],
    maps: Sequence[Sequence[tuple[Any, float]]],
    titles: Sequence[str],
    size: tuple[float, float],
    captions: Sequence[str] | None = None,
) -> Any:
    """
    Draws a row for each image: the image and its maps.

    Args:
        pictures (`Sequence[PIL.Image.Image]`):
            The images: squares, or whole pictures that were assembled from tiles.
        maps (`Sequence[Sequence[tuple]]`):
            For each image, its maps: weights of shape `(rows, columns)`, and the share of the image's sides that their
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
        axes = figure.subplots(len(pictures), len(titles), squeeze=False, height_ratios=panel_heights(pictures, 1.0))
        for axis, title in zip(axes[0], titles):
            axis.set_title(title, pad=3)
        for (first, *others), picture, row in zip(axes, pictures, maps):
            width, height = _extent(picture)
            first.imshow(picture, extent=(0, width, 0, height))
            for axis, (weights, covered) in zip(others, row):
                _draw_map(axis, picture, np.array(weights), covered)
            for axis in others[len(row) :]:
                axis.set_visible(False)
        for axis, caption in zip(axes[:, 0], captions or []):
            axis.set_xlabel(caption, labelpad=2)
        for axis in axes.flat:
            axis.set_xticks([])
            axis.set_yticks([])
    return figure
