"""The picture over which a map lies that was assembled from tiles."""

from typing import Any

import torch
from PIL import Image


# Shapes: T tiles, m patches of a tile (g x g), p pixels of a patch along a side, H x W cells.


def to_picture(levels: torch.Tensor) -> Image.Image:
    """Returns the picture of levels from 0 to 255, uint8 of shape `(3, height, width)`."""
    return Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy())


def assemble_picture(
    image_processor: Any, squares: torch.Tensor, image_sizes: torch.Tensor, patch_size: int
) -> Image.Image:
    """
    Assembles a picture from the patches of its tiles, so that a map of the same patches has its extent.

    Args:
        image_processor (`HawaiiImageProcessor`):
            The image processor that cut the tiles.
        squares (`torch.ByteTensor` of shape `(num_tiles, 3, side, side)`):
            Levels of all squares of one image. Pixels to the right and at the bottom that fill no patch are left out,
            because the encoder does not see them either.
        image_sizes (`torch.LongTensor` of shape `(1, 2)`):
            Height and width of the image, in pixels.
        patch_size (`int`):
            Side of a patch, in pixels of the squares.
    """
    patches = squares.unfold(2, patch_size, patch_size).unfold(3, patch_size, patch_size)  # (T, 3, g, g, p, p)
    patches = patches.permute(0, 2, 3, 1, 4, 5).flatten(1, 2)  # (T, m, 3, p, p)
    (cells,) = image_processor.assemble_maps(patches, image_sizes)  # (H, W, 3, p, p)
    return to_picture(cells.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2))
