"""A teacher's grid is matched to the student's: cells keep their positions, and are only resized if necessary."""

import pytest
import torch

from hawaii.training.teachers.grids import match_grid, matched_shape, resize_grid


def numbered_grid(height, width, channels=1):
    """A grid in which all values differ."""
    return torch.arange(height * width * channels, dtype=torch.float32).view(1, height, width, channels)


def test_a_grid_of_the_same_size_is_flattened_row_by_row():
    grid = numbered_grid(4, 4, 3)
    assert torch.equal(match_grid(grid, 4, "unshuffle"), grid.view(1, 16, 3))


def test_each_block_of_cells_is_stacked_into_its_token():
    # 0  1 |  2  3
    # 4  5 |  6  7     to four tokens of 2 x 2 cells each
    # -----+------
    # 8  9 | 10 11
    # 12 13| 14 15
    tokens = match_grid(numbered_grid(4, 4), 2, "unshuffle")
    assert tokens.tolist() == [[[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]]


@pytest.mark.parametrize("k", [1, 2, 3])
def test_an_exact_multiple_is_only_permuted(k):
    grid = numbered_grid(6 * k, 6 * k, 5)
    tokens = match_grid(grid, 6, "unshuffle")
    assert tokens.shape == (1, 36, k * k * 5)
    assert torch.equal(tokens.flatten().sort().values, grid.flatten())


def test_a_grid_of_64_is_resized_to_48_and_unshuffled_to_24():
    grid = torch.randn(2, 64, 64, 3)
    tokens = match_grid(grid, 24, "unshuffle")
    assert tokens.shape == (2, 24 * 24, 4 * 3)
    assert torch.equal(tokens, match_grid(resize_grid(grid, 48), 24, "unshuffle"))


@pytest.mark.parametrize("side", [12, 17, 32, 47])
def test_a_grid_of_less_than_twice_the_size_is_resized(side):
    grid = torch.randn(1, side, side, 3)
    assert torch.equal(match_grid(grid, 24, "unshuffle"), resize_grid(grid, 24).view(1, 576, 3))


def test_the_shorter_side_decides_how_cells_are_stacked():
    assert match_grid(torch.randn(1, 8, 4, 3), 4, "unshuffle").shape == (1, 16, 3)
    assert match_grid(torch.randn(1, 9, 13, 3), 4, "unshuffle").shape == (1, 16, 4 * 3)


def test_a_constant_grid_stays_constant():
    tokens = match_grid(torch.full((1, 8, 8, 2), 3.0), 4, "interpolate")
    torch.testing.assert_close(tokens, torch.full((1, 16, 2), 3.0))


def test_interpolate_keeps_the_channels():
    grid = torch.randn(1, 8, 8, 3)
    assert torch.equal(match_grid(grid, 4, "interpolate"), resize_grid(grid, 4).view(1, 16, 3))


def test_learned_keeps_the_teachers_cells():
    grid = numbered_grid(5, 7, 2)
    assert torch.equal(match_grid(grid, 4, "learned"), grid.view(1, 35, 2))


@pytest.mark.parametrize("grid_matching", ["unshuffle", "interpolate"])
@pytest.mark.parametrize("side", [4, 8, 11, 16])
def test_the_largest_token_is_at_the_position_of_the_largest_cell(side, grid_matching):
    size = 4
    for row in range(side):
        for column in range(side):
            grid = torch.zeros(1, side, side, 1)
            grid[0, row, column] = 1
            light = match_grid(grid, size, grid_matching).sum(dim=-1).view(size, size)
            brightest = divmod(light.argmax().item(), size)
            centre = ((row + 0.5) * size / side, (column + 0.5) * size / side)
            assert all(abs(place + 0.5 - at) <= 0.5 + 1e-6 for place, at in zip(brightest, centre)), (row, column)


@pytest.mark.parametrize("grid_matching", ["unshuffle", "interpolate", "learned"])
@pytest.mark.parametrize(("height", "width"), [(3, 3), (4, 4), (5, 9), (8, 8), (15, 12), (16, 16)])
def test_matched_shape_is_the_shape_of_the_output(height, width, grid_matching):
    tokens = match_grid(torch.randn(2, height, width, 3), 4, grid_matching)
    assert matched_shape(height, width, 3, 4, grid_matching) == tuple(tokens.shape[1:])


def test_half_precision_is_resized_in_float32_and_returned_in_half_precision():
    grid = torch.randn(1, 6, 6, 3).bfloat16()
    assert torch.equal(resize_grid(grid, 4), resize_grid(grid.float(), 4).bfloat16())
