"""Tiles have LLaVA-NeXT's pixels, show their part of the picture, and need little memory for any shape."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import LlavaNextImageProcessorPil
from transformers.utils import is_torchvision_available

from hawaii.processing.image_processing_hawaii import HawaiiImageProcessor
from hawaii.processing.tile_images_hawaii import cut_tiles
from hawaii.tests.tiny.models import PINPOINTS
from hawaii.tests.tiny.tiles import PUBLISHED_PINPOINTS


SIDE = {"height": 16, "width": 16}
TINY = {"size": SIDE, "crop_size": SIDE, "image_grid_pinpoints": PINPOINTS}
LARGE = {"height": 336, "width": 336}
PUBLISHED = {"size": LARGE, "crop_size": LARGE, "image_grid_pinpoints": PUBLISHED_PINPOINTS}
# Width and height: wide, high, square, tiny, of one pixel, at the ratio of a grid, and near it.
SIZES = [(60, 20), (9, 40), (30, 30), (3, 2), (1, 1), (1, 9), (16, 32), (31, 16), (33, 16), (200, 150), (47, 100)]
LEVEL = 1 / 255 / 0.26  # one of 256 grey levels in normalised values; 0.26 is the least standard deviation
BICUBIC = Image.Resampling.BICUBIC


def noise(width, height):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def smooth(width, height):
    """A picture like a photograph: neighbouring pixels are similar."""
    return noise(max(1, width // 8), max(1, height // 8)).resize((width, height), BICUBIC)


def squares_of(features):
    """The squares of all images, without those that pad LLaVA-NeXT's."""
    pixel_values = features["pixel_values"]
    if pixel_values.ndim == 4:
        return pixel_values
    return torch.cat([tiles[tiles.flatten(1).any(dim=1)] for tiles in pixel_values])


@pytest.mark.parametrize("size", SIZES)
def test_pixels_are_exactly_llava_nexts(size):
    theirs = LlavaNextImageProcessorPil(**TINY)(noise(*size), return_tensors="pt")
    ours = HawaiiImageProcessor(**TINY)(noise(*size), return_tensors="pt")
    assert torch.equal(ours["pixel_values"], squares_of(theirs))
    assert ours["image_sizes"].tolist() == theirs["image_sizes"].tolist() == [[size[1], size[0]]]


@pytest.mark.parametrize("size", [(900, 300), (333, 1000), (70, 50)])
def test_pixels_of_published_sizes_are_exactly_llava_nexts(size):
    theirs = LlavaNextImageProcessorPil(**PUBLISHED)(noise(*size), return_tensors="pt")
    ours = HawaiiImageProcessor(**PUBLISHED)(noise(*size), return_tensors="pt")
    assert torch.equal(ours["pixel_values"], squares_of(theirs))


def test_several_images_have_their_own_grids():
    images = [noise(*size) for size in SIZES]
    together = HawaiiImageProcessor(**TINY)(images, return_tensors="pt")
    theirs = LlavaNextImageProcessorPil(**TINY)(images, return_tensors="pt")
    assert torch.equal(together["pixel_values"], squares_of(theirs))
    assert torch.equal(together["image_sizes"], theirs["image_sizes"])
    alone = [HawaiiImageProcessor(**TINY)(image, return_tensors="pt")["pixel_values"] for image in images]
    assert len({len(tiles) for tiles in alone}) == 3
    assert torch.equal(together["pixel_values"], torch.cat(alone))


@pytest.mark.parametrize("tensor_type", ["np", None])
def test_pixels_do_not_depend_on_the_kind_of_tensor(tensor_type):
    expected = HawaiiImageProcessor(**TINY)(noise(40, 30), return_tensors="pt")
    features = HawaiiImageProcessor(**TINY)(noise(40, 30), return_tensors=tensor_type)
    for name in ("pixel_values", "image_sizes"):
        torch.testing.assert_close(torch.from_numpy(np.array(features[name])), expected[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(900, 300), (333, 1000), (70, 50)])
def test_pixels_differ_by_two_levels_from_torchs_resampling(size):
    """Which torchvision uses for bytes. It rounds between rows and columns, and Pillow between columns and rows."""
    image = smooth(*size)
    whole, *_ = cut_tiles(image, PUBLISHED_PINPOINTS, 336, BICUBIC)
    planes = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    resized = F.interpolate(planes, (336, 336), mode="bicubic", antialias=True, align_corners=False)[0]
    difference = resized.int() - torch.from_numpy(np.array(whole)).permute(2, 0, 1).int()
    assert 0 < difference.abs().max() <= 2


@pytest.mark.timm
def test_pixels_differ_by_two_levels_from_those_of_torchvision():
    from transformers import LlavaNextImageProcessor

    assert is_torchvision_available()
    for size in ((900, 300), (333, 1000), (70, 50)):
        theirs = squares_of(LlavaNextImageProcessor(**PUBLISHED)(smooth(*size), return_tensors="pt"))
        ours = HawaiiImageProcessor(**PUBLISHED)(smooth(*size), return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2.1 * LEVEL)


def test_the_tiles_put_together_are_the_picture_on_black():
    image = noise(40, 12)  # in a grid of 48 x 16 it is 48 x 15
    whole, *tiles = cut_tiles(image, PINPOINTS, 16, BICUBIC)
    assert whole.tobytes() == image.resize((16, 16), BICUBIC).tobytes()
    assembled = np.concatenate([np.asarray(tile) for tile in tiles], axis=1)
    assert np.array_equal(assembled[:15], np.asarray(image.resize((48, 15), BICUBIC)))
    assert not assembled[15:].any()


def test_tiles_are_in_reading_order():
    """A bright square moves over the cells of 2 x 3 tiles: one tile is bright, and the same part of the whole."""
    for row in range(2):
        for column in range(3):
            picture = np.zeros((32, 48, 3), dtype=np.uint8)
            picture[16 * row : 16 * row + 16, 16 * column : 16 * column + 16] = 255
            whole, *tiles = cut_tiles(Image.fromarray(picture), [[32, 48]], 16, BICUBIC)
            means = [np.asarray(tile).mean() for tile in tiles]
            assert means == [255 * (place == 3 * row + column) for place in range(6)]
            top, left = np.unravel_index(np.asarray(whole)[..., 0].argmax(), (16, 16))
            assert (top // 8, left * 3 // 16) == (row, column)


@pytest.mark.parametrize("side", [8, 24])
def test_squares_of_another_side_show_the_same_parts(side):
    """Teachers see the tiles at their own size."""
    image = smooth(96, 64)
    for tile, other in zip(cut_tiles(image, [[32, 48]], 16, BICUBIC), cut_tiles(image, [[32, 48]], 16, BICUBIC, side)):
        assert other.size == (side, side)
        means = [np.asarray(square.resize((2, 2), Image.Resampling.BOX), dtype=float) for square in (tile, other)]
        assert np.abs(means[0] - means[1]).max() < 6


def test_tiles_keep_the_size_of_the_processor():
    processor = HawaiiImageProcessor(**TINY)
    for options in ({"do_resize": False}, {"size": {"height": 8, "width": 8}}):
        features = processor(noise(40, 30), return_tensors="pt", **options)
        assert features["pixel_values"].shape == (5, 3, 16, 16)


def test_every_form_of_an_image_gives_the_same_tiles(tmp_path):
    image = noise(40, 12)
    image.save(tmp_path / "image.png")
    expected = HawaiiImageProcessor(**TINY)(image, return_tensors="pt")
    array = np.asarray(image)
    for form in (tmp_path / "image.png", array, torch.from_numpy(array.copy()).permute(2, 0, 1), [[image]]):
        features = HawaiiImageProcessor(**TINY)(form, return_tensors="pt")
        assert all(torch.equal(features[name], expected[name]) for name in expected)


@pytest.mark.parametrize("pinpoints", [[[16, 20]], [], [[336, 672]][0]])
def test_pinpoints_must_be_multiples_of_the_tiles_side(pinpoints):
    with pytest.raises(ValueError, match="image_grid_pinpoints is .*multiples of 16, the side of a tile"):
        HawaiiImageProcessor(size=SIDE, crop_size=SIDE, image_grid_pinpoints=pinpoints)


# The most memory that a process needs for each of some pictures beyond the picture itself, in MiB.
MEASURE = """
import json, resource, sys
from pathlib import Path
from PIL import Image
from hawaii.processing.image_processing_hawaii import HawaiiImageProcessor

side = {"height": 336, "width": 336}
pinpoints = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
processor = HawaiiImageProcessor(size=side, crop_size=side, image_grid_pinpoints=pinpoints)
processor(Image.new("RGB", (8, 8)), return_tensors="pt")
needed = []
for size in json.loads(sys.argv[1]):
    image = Image.new("RGB", size, "red")
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    features = processor(image, return_tensors="pt")
    needed.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before / 2**20)
print(json.dumps(needed))
"""


def test_memory_is_bounded_for_every_shape():
    """Resized row by row, a picture of 1 x 100,000 pixels would need 128 MiB between the two passes of the filter."""
    sizes = [(1, 10**5), (10**5, 1), (40, 2**17)]
    finished = subprocess.run([sys.executable, "-c", MEASURE, json.dumps(sizes)], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert max(json.loads(finished.stdout.splitlines()[-1])) < 100, finished.stdout


@pytest.mark.parametrize("size", [(1, 10**5), (10**5, 1)], ids=str)
def test_the_longest_shapes_are_cut(size):
    features = HawaiiImageProcessor(**PUBLISHED)(noise(*size), return_tensors="pt")
    assert features["pixel_values"].shape == (3, 3, 336, 336) and features["pixel_values"].isfinite().all()
    assert features["image_sizes"].tolist() == [[size[1], size[0]]]
