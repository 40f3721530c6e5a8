"""Each patch of a tile is at its place in the map of its picture."""

import pytest
import torch

from hawaii.configuration.tiles_hawaii import assemble_maps, find_features, find_tile_grids


TILE, SIDE = 16, 4  # pixels and patches of a tile
PINPOINTS = [[16, 32], [32, 16], [32, 32], [16, 48]]


def grids_of(*sizes):
    """Grids of pictures of these heights and widths."""
    return find_tile_grids(torch.tensor(sizes), PINPOINTS, TILE, SIDE)


def place_tiles(tiles, rows, columns):
    """Puts the tiles of a grid next to each other; `tiles` has shape `(rows * columns, SIDE * SIDE)`."""
    canvas = torch.zeros(rows * SIDE, columns * SIDE, dtype=tiles.dtype)
    for number, tile in enumerate(tiles):
        top, left = number // columns * SIDE, number % columns * SIDE
        canvas[top : top + SIDE, left : left + SIDE] = tile.view(SIDE, SIDE)
    return canvas


def test_maps_of_several_pictures_are_their_tiles_side_by_side_without_padding():
    grids = grids_of((16, 32), (32, 16), (24, 32), (24, 32), (8, 48))
    assert grids.num_tiles.tolist() == [3, 3, 5, 5, 4]
    values = torch.arange(20 * SIDE**2).view(20, SIDE**2)
    maps = assemble_maps(values, grids)
    assert torch.equal(maps[0], place_tiles(values[1:3], 1, 2))
    assert torch.equal(maps[1], place_tiles(values[4:6], 2, 1))
    assert torch.equal(maps[2], place_tiles(values[7:11], 2, 2)[1:7])  # one row of cells of black above and below
    assert torch.equal(maps[3], place_tiles(values[12:16], 2, 2)[1:7])
    assert torch.equal(maps[4], place_tiles(values[17:20], 1, 3)[1:3])


@pytest.mark.parametrize("size", [(16, 32), (21, 32), (32, 19), (5, 40), (300, 100), (31, 32)])
def test_a_map_has_the_cells_of_the_image_tokens_in_their_order(size):
    grids = grids_of(size)
    values = torch.randn(int(grids.num_tiles), SIDE**2, 3)
    (cells,) = assemble_maps(values, grids)
    index, is_newline = find_features(grids, torch.arange(int(grids.num_tokens)))
    tokens = values.flatten(0, 1)[index[~is_newline]]
    assert torch.equal(cells.flatten(0, 1), tokens[SIDE**2 :])
    assert cells.shape == (int(grids.height), int(grids.width), 3)


def test_a_picture_much_thinner_than_a_cell_has_the_map_of_the_whole_picture():
    grids = grids_of((1, 1000), (1000, 1), (16, 32))
    assert (grids.height.tolist()[0], grids.width.tolist()[1]) == (0, 0)
    values = torch.arange(int(grids.num_tiles.sum()) * SIDE**2).view(-1, SIDE**2)
    maps = assemble_maps(values, grids)
    for cells, first in zip(maps, grids.first.tolist()):
        assert cells.shape == (4, 8) or torch.equal(cells, values[first].view(SIDE, SIDE))


def test_padded_tiles_are_in_no_map():
    grids = find_tile_grids(torch.tensor([[16, 32], [32, 32]]), PINPOINTS, TILE, SIDE, stored_tiles=5)
    values = torch.arange(10 * SIDE**2).view(10, SIDE**2)
    wide, square = assemble_maps(values, grids)
    assert torch.equal(wide, place_tiles(values[1:3], 1, 2))
    assert torch.equal(square, place_tiles(values[6:10], 2, 2))
