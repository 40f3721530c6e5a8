"""The tiles of a picture, as in LLaVA-NeXT: their grid, and the feature that replaces each image token."""

from collections.abc import Sequence
from typing import NamedTuple

import torch


# Shapes: I pictures, G grid pinpoints. A picture's tiles are the whole picture, stretched to a square, and then the
# squares of its grid, row by row. Each has g x g patches, the cells of a map of the picture. The map is cropped to the
# cells that show some of the picture, and each of its rows ends with a newline.


class TileGrids(NamedTuple):
    """
    The grids of pictures.

    Args:
        rows, columns (`torch.LongTensor` of shape `(num_pictures,)`):
            Number of rows and columns of tiles, without the whole picture.
        top, left (`torch.LongTensor` of shape `(num_pictures,)`):
            Rows and columns of cells that are cut off above and to the left, because they show padding.
        height, width (`torch.LongTensor` of shape `(num_pictures,)`):
            Rows and columns of cells that are left.
        first (`torch.LongTensor` of shape `(num_pictures,)`):
            Index of the picture's first tile among those of all pictures.
        patches_a_side (`int`):
            Patches of a tile along a side, g.
    """

    rows: torch.Tensor
    columns: torch.Tensor
    top: torch.Tensor
    left: torch.Tensor
    height: torch.Tensor
    width: torch.Tensor
    first: torch.Tensor
    patches_a_side: int

    @property
    def num_tiles(self) -> torch.Tensor:
        """Number of tiles of each picture, with the whole picture, `(num_pictures,)`."""
        return 1 + self.rows * self.columns

    @property
    def num_tokens(self) -> torch.Tensor:
        """Number of image tokens of each picture, `(num_pictures,)`."""
        return self.patches_a_side**2 + self.height * (self.width + 1)


def check_grid_pinpoints(pinpoints: Sequence[Sequence[int]] | None, tile_size: int) -> list[list[int]] | None:
    """
    Returns grid pinpoints as lists of integers; `None` for one square per image.

    Raises:
        ValueError: they are not pairs of heights and widths that are multiples of `tile_size`, or there are none.
    """
    if pinpoints is None:
        return None
    problem = (
        f"image_grid_pinpoints is {pinpoints!r}; it must be a list of [height, width] in pixels, multiples of "
        f"{tile_size}, the side of a tile, such as [[{tile_size}, {2 * tile_size}]], or None for one square per image."
    )
    try:
        pairs = [[int(side) for side in pair] for pair in pinpoints]
        is_equal = all(list(pair) == list(given) for pair, given in zip(pairs, pinpoints))
    except (TypeError, ValueError):
        raise ValueError(problem) from None
    if not pairs or not is_equal:
        raise ValueError(problem)
    if any(len(pair) != 2 or min(pair) < tile_size or any(side % tile_size for side in pair) for pair in pairs):
        raise ValueError(problem)
    return pairs


def find_tile_grids(
    image_sizes: torch.Tensor,
    pinpoints: Sequence[Sequence[int]],
    tile_size: int,
    patches_a_side: int,
    stored_tiles: int | None = None,
) -> TileGrids:
    """
    Chooses the grid of each picture: the pinpoint that shows most of its pixels, and among these the smallest.

    All is computed on the device of `image_sizes` without waiting for it, in float64 where LLaVA-NeXT rounds (but on
    the host for Apple's GPUs, which lack it).

    Args:
        image_sizes (`torch.LongTensor` of shape `(num_pictures, 2)`):
            Height and width of each picture, in pixels.
        pinpoints (`list[list[int]]`):
            Heights and widths of the grids to choose from, in pixels.
        tile_size (`int`):
            Side of a tile, in pixels.
        patches_a_side (`int`):
            Patches of a tile along a side.
        stored_tiles (`int`, *optional*):
            Number of tiles that every picture has, if they are padded; those of its grid if not given.

    Raises:
        ValueError: `image_sizes` does not have two columns.
    """
    if image_sizes.ndim != 2 or image_sizes.shape[1] != 2:
        raise ValueError(
            f"image_sizes has shape {tuple(image_sizes.shape)}; it must be (number of images, 2), the height and "
            "width of each."
        )
    if (device := image_sizes.device).type == "mps":
        grids = find_tile_grids(image_sizes.cpu(), pinpoints, tile_size, patches_a_side, stored_tiles)
        return grids._replace(**{name: getattr(grids, name).to(device) for name in grids._fields[:-1]})

    def constants(values: Sequence[int]) -> torch.Tensor:
        # Filled on the device: copying a list from the host would wait.
        return torch.stack([torch.full((), value, dtype=torch.float64, device=sizes.device) for value in values])

    sizes = image_sizes.double()
    height, width = sizes[:, :1], sizes[:, 1:]  # (I, 1)
    grid_height, grid_width = (constants([pair[axis] for pair in pinpoints]) for axis in (0, 1))  # (G,)
    scale = torch.minimum(grid_width / width, grid_height / height)  # (I, G)
    shown = torch.minimum((height * scale).floor() * (width * scale).floor(), height * width)
    is_best = shown == shown.amax(dim=1, keepdim=True)
    best = torch.where(is_best, grid_height * grid_width, torch.inf).argmin(dim=1)  # (I,), the first of equal ones
    rows, columns = (side.index_select(0, best).long() // tile_size for side in (grid_height, grid_width))

    # The picture is centred in its grid and touches two of its sides.
    cell_rows, cell_columns = rows * patches_a_side, columns * patches_a_side
    height, width = image_sizes.long().unbind(dim=1)
    is_wider = width * cell_rows > cell_columns * height
    top = (cell_rows - height * cell_columns // width).clamp(min=0) // 2 * is_wider
    left = (cell_columns - width * cell_rows // height).clamp(min=0) // 2 * ~is_wider
    num_stored = 1 + rows * columns if stored_tiles is None else torch.full_like(rows, stored_tiles)
    first = num_stored.cumsum(0) - num_stored
    return TileGrids(rows, columns, top, left, cell_rows - 2 * top, cell_columns - 2 * left, first, patches_a_side)


def _as_tensor(image_sizes: Sequence[Sequence[int]]) -> torch.Tensor:
    sizes = [[int(side) for side in size] for size in image_sizes]
    for size in sizes:
        if min(size) < 1:
            raise ValueError(f"An image has the size {size}; its height and width must be 1 or more.")
    return torch.tensor(sizes)


def count_tiles(
    image_sizes: Sequence[Sequence[int]], pinpoints: Sequence[Sequence[int]] | None, tile_size: int
) -> list[int]:
    """
    Number of tiles of each picture, with the whole picture.

    Args:
        image_sizes (`list[tuple[int, int]]`):
            Height and width of each picture, in pixels.
        pinpoints, tile_size:
            As for [`find_tile_grids`]; without pinpoints each picture is one square.
    """
    if pinpoints is None or not len(image_sizes):
        return [1] * len(image_sizes)
    return find_tile_grids(_as_tensor(image_sizes), pinpoints, tile_size, 1).num_tiles.tolist()


def count_image_tokens(
    image_sizes: Sequence[Sequence[int]],
    pinpoints: Sequence[Sequence[int]] | None,
    tile_size: int,
    patches_a_side: int,
) -> list[int]:
    """
    Number of image tokens of each picture.

    Args:
        image_sizes (`list[tuple[int, int]]`):
            Height and width of each picture, in pixels.
        pinpoints, tile_size, patches_a_side:
            As for [`find_tile_grids`]; without pinpoints each picture is one square.
    """
    if pinpoints is None or not len(image_sizes):
        return [patches_a_side**2] * len(image_sizes)
    return find_tile_grids(_as_tensor(image_sizes), pinpoints, tile_size, patches_a_side).num_tokens.tolist()


def find_features(grids: TileGrids, order: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Finds the feature of each image token: first those of the whole picture, then the rows of its map, each of which
    ends with a newline.

    Args:
        grids (`TileGrids`):
            Grids of all pictures, in the order of their tokens.
        order (`torch.LongTensor`):
            Indices among all image tokens, of any shape.

    Returns:
        Index of the patch among those of all tiles, zero for a newline, and whether the token is a newline; both with
        the shape of `order`.
    """
    side = grids.patches_a_side
    ends = grids.num_tokens.cumsum(0)
    picture = torch.searchsorted(ends, order, right=True).clamp(max=len(ends) - 1)
    in_picture = order - (ends - grids.num_tokens)[picture]
    in_map = in_picture - side**2
    length = grids.width[picture] + 1  # of a row
    row, column = in_map // length, in_map % length
    is_newline = (in_map >= 0) & (column == length - 1)
    row, column = row + grids.top[picture], column + grids.left[picture]
    tile = 1 + row // side * grids.columns[picture] + column // side
    in_tiles = tile * side**2 + row % side * side + column % side
    index = grids.first[picture] * side**2 + torch.where(in_map < 0, in_picture, in_tiles)
    return torch.where(is_newline, 0, index), is_newline


def assemble_maps(values: torch.Tensor, grids: TileGrids) -> list[torch.Tensor]:
    """
    Assembles one map for each picture from the patches of its tiles, without newlines.

    Args:
        values (`torch.Tensor` of shape `(num_tiles, num_patches, ...)`):
            Values of the patches of all tiles.
        grids (`TileGrids`):
            Grids of all pictures, in the order of their tiles.

    Returns:
        `list[torch.Tensor]`: The cells of each picture, of shape `(height, width, ...)`. A picture much thinner than a
        cell has none, and gets the patches of the whole picture, `(patches_a_side, patches_a_side, ...)`.
    """
    num_tokens, side = grids.num_tokens.tolist(), grids.patches_a_side
    order = torch.arange(sum(num_tokens), device=grids.rows.device)
    pictures = find_features(grids, order)[0].to(values.device).split(num_tokens)
    patches = values.flatten(0, 1)
    maps = []
    for index, height, width in zip(pictures, grids.height.tolist(), grids.width.tolist()):
        if height and width:
            cells = index[side**2 :].view(height, width + 1)[:, :width]
        else:
            cells = index[: side**2].view(side, side)
        maps.append(patches[cells])
    return maps
