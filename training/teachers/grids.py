"""Matches the feature grids of teachers to the student's ("unshuffled", eq. 3)."""

import torch
import torch.nn.functional as F


GRID_MATCHINGS = ("unshuffle", "interpolate", "learned")


def resize_grid(grid: torch.Tensor, size: int) -> torch.Tensor:
    """
    Resizes a grid, bilinear and antialiased; a grid that already has the size is returned unchanged.

    Args:
        grid (`torch.FloatTensor` of shape `(batch_size, height, width, channels)`):
            Features.
        size (`int`):
            New height and width.
    """
    if grid.shape[1:3] == (size, size):
        return grid
    channels_first = grid.permute(0, 3, 1, 2).float()
    resized = F.interpolate(channels_first, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    return resized.permute(0, 2, 3, 1).to(grid.dtype)


def unshuffle_factor(height: int, width: int, size: int) -> int:
    """Returns how many of the teacher's cells, along a side, form one of the student's."""
    return max(1, min(height, width) // size)


def match_grid(grid: torch.Tensor, size: int, grid_matching: str) -> torch.Tensor:
    """
    Converts a teacher's grid to tokens for the student.

    `"unshuffle"` resizes to the largest multiple `k * size` that is not larger than the grid and stacks each k x k
    block of cells into channels; `"interpolate"` resizes to `size`; `"learned"` keeps the teacher's cells, to be
    matched by a linear layer over the token axis.

    Args:
        grid (`torch.FloatTensor` of shape `(batch_size, height, width, channels)`):
            Features.
        size (`int`):
            Side of the student's grid.
        grid_matching (`str`):
            One of these three.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, num_tokens, matched_channels)`, row by row; see
        [`matched_shape`].
    """
    if grid_matching == "learned":
        return grid.flatten(1, 2)
    if grid_matching == "interpolate":
        return resize_grid(grid, size).flatten(1, 2)
    k = unshuffle_factor(grid.shape[1], grid.shape[2], size)
    grid = resize_grid(grid, k * size)
    blocks = grid.unflatten(2, (size, k)).unflatten(1, (size, k))  # (B, size, k, size, k, C)
    return blocks.permute(0, 1, 3, 2, 4, 5).flatten(3).flatten(1, 2)


def matched_shape(height: int, width: int, channels: int, size: int, grid_matching: str) -> tuple[int, int]:
    """Returns the `(num_tokens, matched_channels)` of [`match_grid`]'s output."""
    if grid_matching == "learned":
        return height * width, channels
    if grid_matching == "interpolate":
        return size * size, channels
    return size * size, channels * unshuffle_factor(height, width, size) ** 2
