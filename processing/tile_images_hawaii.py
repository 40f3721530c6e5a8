"""Cuts a picture into the tiles that an encoder sees."""

from collections.abc import Sequence
from math import ceil

import torch
from PIL import Image

from ..configuration.tiles_hawaii import find_tile_grids


STRIP_AREA = 2**24  # pixels between the two passes of a filter


def _resize_to_square(image: Image.Image, side: int, resample: int) -> Image.Image:
    """Stretches an image to a square; of a very high image, only a few columns at a time are in memory."""
    num_columns = max(1, STRIP_AREA // image.height)
    square = Image.new("RGB", (side, side))
    for left in range(0, side, num_columns):
        right = min(left + num_columns, side)
        box = (left * image.width / side, 0, right * image.width / side, image.height)
        square.paste(image.resize((right - left, side), Image.Resampling(resample), box), (left, 0))
    return square


def cut_tiles(
    image: Image.Image, pinpoints: Sequence[Sequence[int]], tile_size: int, resample: int, side: int | None = None
) -> list[Image.Image]:
    """
    Cuts a picture into tiles, as LLaVA-NeXT does.

    Args:
        image (`PIL.Image.Image`):
            The picture, in RGB.
        pinpoints (`list[list[int]]`), tile_size (`int`):
            As for [`find_tile_grids`].
        resample (`int`):
            Pillow's filter.
        side (`int`, *optional*):
            Side of the squares that are returned; `tile_size` if not given. They show the same parts of the picture.

    Returns:
        `list[PIL.Image.Image]`: the whole picture, stretched to a square, and the squares of its grid, row by row; the
        picture has the grid's size in one direction, and is centred on black in the other.
    """
    side = tile_size if side is None else side
    grids = find_tile_grids(torch.tensor([[image.height, image.width]]), pinpoints, tile_size, patches_a_side=1)
    height, width = int(grids.rows) * side, int(grids.columns) * side
    across, down = width / image.width, height / image.height
    if across < down:
        shown = (width, min(ceil(image.height * across), height))
    else:
        shown = (min(ceil(image.width * down), width), height)
    canvas = Image.new("RGB", (width, height))
    resized = image.resize(shown, Image.Resampling(resample))
    canvas.paste(resized, ((width - shown[0]) // 2, (height - shown[1]) // 2))
    corners = [(left, top) for top in range(0, height, side) for left in range(0, width, side)]
    tiles = [canvas.crop((left, top, left + side, top + side)) for left, top in corners]
    return [_resize_to_square(image, side, resample), *tiles]
