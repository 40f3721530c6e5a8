"""Grids of tiles, numbers of tiles and tokens, and the feature of each token."""

import random

import pytest
import torch

from hawaii import HawaiiConfig
from hawaii.configuration.tiles_hawaii import (
    check_grid_pinpoints,
    count_image_tokens,
    count_tiles,
    find_features,
    find_tile_grids,
)
from hawaii.tests.tiny.models import PINPOINTS, VISION, make_config
from hawaii.tests.tiny.operations import CountOperations
from hawaii.tests.tiny.tiles import (
    PUBLISHED_PINPOINTS,
    choose_grid,
    make_llava_next_processor,
    pack_naively,
)


# Height and width: sides of one pixel, the longest ones, and ratios at which a grid fits exactly or almost.
EXTREME_SIZES = [
    (1, 1),
    (1, 2),
    (2, 1),
    (3, 1),
    (1, 336),
    (336, 336),
    (336, 672),
    (335, 672),
    (337, 672),
    (672, 1009),
    (4096, 4096),
    (1, 300),
    (300, 1),
    (17, 2**17),
    (2**17, 400),
    (10**5, 99_999),
    (1000, 1001),
]


def random_sizes(number, longest):
    """Heights and widths whose logarithms are uniform, so that small and extreme shapes are among them."""
    draw = random.Random(0)
    return [tuple(round(longest ** draw.random()) for _ in range(2)) for _ in range(number)]


def numbers(grids):
    """Rows and columns of tiles, and the rows and columns of cells that are left, of each picture."""
    return list(zip(*(getattr(grids, name).tolist() for name in ("rows", "columns", "height", "width"))))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((20, 20), (2, 2, 8, 8)),
        ((16, 32), (1, 2, 4, 8)),
        ((16, 16), (1, 2, 4, 4)),  # the grid is the first of two equal ones; two columns are cut off on each side
        ((10, 60), (1, 3, 2, 12)),
        ((60, 10), (3, 1, 12, 2)),
        ((40, 80), (1, 2, 4, 8)),  # 2 x 2 tiles would show as many
        ((30, 22), (2, 2, 8, 6)),
    ],
)
def test_a_grid_shows_most_pixels_with_fewest_tiles(size, expected):
    grids = find_tile_grids(torch.tensor([size]), PINPOINTS, 16, 4)
    assert numbers(grids) == [expected]
    rows, columns, height, width = expected
    assert grids.num_tiles.tolist() == [1 + rows * columns]
    assert grids.num_tokens.tolist() == [16 + height * (width + 1)]


def test_the_first_tile_of_a_picture_follows_the_tiles_of_those_before_it():
    sizes = torch.tensor([[20, 20], [16, 32], [60, 10]])
    assert find_tile_grids(sizes, PINPOINTS, 16, 4).first.tolist() == [0, 5, 8]
    assert find_tile_grids(sizes, PINPOINTS, 16, 4, stored_tiles=7).first.tolist() == [0, 7, 14]


@pytest.mark.parametrize("pinpoints", [PUBLISHED_PINPOINTS, [[336 * i, 336 * j] for i in range(1, 7) for j in (1, 5)]])
def test_grids_are_those_of_a_plain_loop(pinpoints):
    sizes = [*EXTREME_SIZES, *random_sizes(500, 4000)]
    grids = find_tile_grids(torch.tensor(sizes), pinpoints, 336, 24)
    expected = [tuple(side // 336 for side in choose_grid(size, pinpoints)) for size in sizes]
    assert list(zip(grids.rows.tolist(), grids.columns.tolist())) == expected


@pytest.mark.parametrize(
    ("tile_size", "patch_size", "pinpoints"),
    [(336, 14, PUBLISHED_PINPOINTS), (16, 4, PINPOINTS), (30, 7, [[30, 60], [60, 30], [90, 150]])],
    ids=["published", "tiny", "remainder"],
)
def test_token_counts_are_llava_nexts(tile_size, patch_size, pinpoints):
    processor = make_llava_next_processor(tile_size, patch_size, pinpoints)
    # Of longer shapes no grid shows a pixel, and LLaVA-NeXT fails.
    longest = min(max(height for height, _ in pinpoints), max(width for _, width in pinpoints))
    sizes = [size for size in (*EXTREME_SIZES, *random_sizes(500, 3000)) if max(size) < longest * min(size)]
    assert len(sizes) >= 200
    expected = processor._get_num_multimodal_tokens(image_sizes=sizes).num_image_tokens
    assert count_image_tokens(sizes, pinpoints, tile_size, tile_size // patch_size) == expected


def test_of_a_shape_that_no_grid_shows_the_smallest_grid_is_used():
    """LLaVA-NeXT finds none, and fails."""
    assert count_tiles([(1, 10**5), (10**5, 1)], PUBLISHED_PINPOINTS, 336) == [3, 3]


def test_without_pinpoints_each_picture_is_one_square():
    assert count_tiles([(5, 900), (7, 7)], None, 16) == [1, 1]
    assert count_image_tokens([(5, 900), (7, 7)], None, 16, 4) == [16, 16]
    assert count_tiles([], PINPOINTS, 16) == count_image_tokens([], PINPOINTS, 16, 4) == []


def test_the_features_of_two_by_one_patches_are_in_reading_order():
    """Two tiles next to each other, of 2 x 2 patches: rows of the map cross both, and -1 is a newline."""
    grids = find_tile_grids(torch.tensor([[4, 8]]), [[4, 8]], 4, 2)
    index, is_newline = find_features(grids, torch.arange(14))
    found = torch.where(is_newline, -1, index).tolist()
    assert found == [0, 1, 2, 3, 4, 5, 8, 9, -1, 6, 7, 10, 11, -1]


@pytest.mark.parametrize("is_padded", [False, True])
def test_features_are_those_of_plain_loops(is_padded):
    sizes = [*EXTREME_SIZES, *random_sizes(60, 500)]
    counts = count_tiles(sizes, PINPOINTS, 16)
    stored = max(counts)
    index = torch.arange(len(sizes) * stored * 16 if is_padded else sum(counts) * 16, dtype=torch.float64)
    squares = index.view(-1, 16, 1)
    if is_padded:
        squares = torch.cat([tiles[:count] for tiles, count in zip(squares.split(stored), counts)])
    expected = torch.cat(pack_naively(squares, sizes, PINPOINTS, 16, torch.tensor([-1.0], dtype=torch.float64)))
    grids = find_tile_grids(torch.tensor(sizes), PINPOINTS, 16, 4, stored if is_padded else None)
    found, is_newline = find_features(grids, torch.arange(int(grids.num_tokens.sum())))
    assert torch.where(is_newline, -1, found).tolist() == expected.flatten().tolist()


def test_features_may_be_asked_for_in_any_order_and_shape():
    grids = find_tile_grids(torch.tensor([[20, 50], [47, 12]]), PINPOINTS, 16, 4)
    order = torch.randperm(int(grids.num_tokens.sum()))[:60].view(3, 20)
    found = find_features(grids, order)
    complete = find_features(grids, torch.arange(int(grids.num_tokens.sum())))
    assert all(torch.equal(one, other[order]) for one, other in zip(found, complete))


def test_no_operation_waits_for_the_device_or_is_repeated_for_a_picture():
    counts = []
    for num_pictures in (1, 50):
        sizes = torch.tensor(random_sizes(num_pictures, 500))
        with CountOperations() as counter:
            find_features(find_tile_grids(sizes, PINPOINTS, 16, 4), torch.arange(200))
        assert not counter.num_waits
        counts.append(counter.num_operations)
    assert counts[0] == counts[1]


def test_grids_are_found_without_values():
    """On the meta device tensors have none, so a read of one would be an error."""
    grids = find_tile_grids(torch.empty(3, 2, dtype=torch.long, device="meta"), PINPOINTS, 16, 4)
    index, is_newline = find_features(grids, torch.empty(2, 9, dtype=torch.long, device="meta"))
    assert index.shape == is_newline.shape == (2, 9) and index.is_meta


@pytest.mark.parametrize(
    "pinpoints", [[], [[16]], [[16, 16, 16]], [[16, 20]], [[0, 16]], [[-16, 16]], [16, 32], 16, "16", [["a", 16]]]
)
def test_pinpoints_that_are_no_grids_are_refused(pinpoints):
    message = r"image_grid_pinpoints is .*; it must be a list of \[height, width\] in pixels, multiples of 16"
    with pytest.raises(ValueError, match=message):
        HawaiiConfig(vision_config=VISION, image_grid_pinpoints=pinpoints)


def test_pinpoints_become_lists():
    assert check_grid_pinpoints(((16, 32.0), torch.tensor([32, 16])), 16) == [[16, 32], [32, 16]]
    assert check_grid_pinpoints(None, 16) is None


@pytest.mark.parametrize("shape", [(2,), (2, 3), (1, 2, 2), (0,)])
def test_image_sizes_have_two_columns(shape):
    message = rf"image_sizes has shape \({', '.join(map(str, shape))}.*it must be \(number of images, 2\)"
    with pytest.raises(ValueError, match=message):
        find_tile_grids(torch.ones(shape, dtype=torch.long), PINPOINTS, 16, 4)


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (-1, 5)])
def test_a_picture_without_pixels_is_an_error(size):
    message = "its height and width must be 1 or more"
    for count in (count_tiles, lambda *args: count_image_tokens(*args, 4)):
        with pytest.raises(ValueError, match=message):
            count([(16, 16), size], PINPOINTS, 16)


def test_pinpoints_are_saved_with_the_configuration(tmp_path):
    make_config(image_grid_pinpoints=PINPOINTS).save_pretrained(tmp_path)
    assert HawaiiConfig.from_pretrained(tmp_path).image_grid_pinpoints == PINPOINTS
    assert HawaiiConfig().image_grid_pinpoints is None
