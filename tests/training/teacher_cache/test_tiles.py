"""A cache has the features of every tile, and training with it equals training with running teachers."""

import shutil

import pytest
import torch
from PIL import Image

from hawaii.files.digest import digest
from hawaii.files.user_error import UserError
from hawaii.tests.tiny.tiled_data import (
    PINPOINTS,
    count_tiles,
    make_tiled_processor,
    make_tiled_records,
    write_tiled_recipe,
)
from hawaii.tests.tiny.training import make_image
from hawaii.training import train as train_module
from hawaii.training.data.reader import teacher_image
from hawaii.training.teacher_cache import build
from hawaii.training.teacher_cache.build import build_cache
from hawaii.training.teacher_cache.contents import Contents, Squares
from hawaii.training.teacher_cache.feature_files import FeatureFiles, square_key, stored_images
from hawaii.training.teacher_cache.quantization import dequantize
from hawaii.training.teachers.grids import match_grid
from hawaii.training.train import train

from .test_build import assert_close, forbid_teachers, losses, subfolder


COUNT = 10
NUM_TILES = 3 + 3 + 3 + 3 + 3 + 5 + 3 + 3 + 5  # of the images that records name: 0, 1, 3, 4, 5, 6, 8, 9 and 10


@pytest.fixture(scope="module")
def world(tmp_path_factory, teacher_folders):
    """A recipe of one stage whose images have tiles; one step has all of its records."""
    folder = tmp_path_factory.mktemp("tiles")
    return write_tiled_recipe(folder, teacher_folders, COUNT, stages={"finetune": {}}, max_length=400)


@pytest.fixture(scope="module")
def cache(world):
    folder = world.parent / "cache"
    build_cache(str(world), output_dir=str(folder))
    return folder


def test_a_cache_has_the_features_of_every_tile(cache):
    folder = subfolder(cache)
    assert Contents.read(folder).squares == Squares("stretch", None, 32, PINPOINTS, 16)
    assert len(stored_images(folder)) == NUM_TILES


@pytest.mark.parametrize("options", [[], ["distill_tiles=false"], ["packing=true", "max_batch_tiles=10"]])
def test_losses_are_those_of_live_teachers(world, cache, tmp_path, monkeypatch, options):
    live = losses(world, tmp_path / "live", *options)
    forbid_teachers(monkeypatch)
    assert_close(losses(world, tmp_path / "cached", *options, f"teacher_cache={cache}"), live, 3e-3)


def test_whole_pictures_alone_need_only_their_features(world, tmp_path, monkeypatch):
    whole = ["distill_tiles=false"]
    build_cache(str(world), whole, str(tmp_path / "cache"))
    folder = subfolder(tmp_path / "cache")
    assert len(stored_images(folder)) == 9
    assert Contents.read(folder).squares == Squares("stretch", None, 32)
    live = losses(world, tmp_path / "live", *whole)
    options = [*whole, f"teacher_cache={tmp_path / 'cache'}"]
    with pytest.raises(UserError, match=r"image_grid_pinpoints is None there and \[\[16, 32\], .* here"):
        losses(world, tmp_path / "refused", f"teacher_cache={tmp_path / 'cache'}")
    # They do not depend on the grids of the tiles that teachers do not see.
    other = losses(world, tmp_path / "other", *options, "image_grid_pinpoints=[[32, 32]]")
    assert len(other) == 2
    forbid_teachers(monkeypatch)
    assert_close(losses(world, tmp_path / "cached", *options), live, 3e-3)


@pytest.mark.parametrize(
    ("option", "difference"),
    [
        ("image_grid_pinpoints=[[16, 32]]", r"image_grid_pinpoints is \[\[16, 32\], .* there and \[\[16, 32\]\] here"),
        ("image_grid_pinpoints=null", "images have tiles there and are one square here"),
    ],
)
def test_features_of_other_tiles_are_refused(world, cache, tmp_path, option, difference):
    with pytest.raises(UserError, match=f"has no suitable features: in stretch-4x4-.*, {difference}"):
        train(str(world), [option, "max_steps=1", f"teacher_cache={cache}", f"output_dir={tmp_path / 'run'}"])


def test_the_features_are_those_of_the_whole_picture_and_then_of_its_tiles(world, cache, teachers):
    folder, path = subfolder(cache), world.parent / "images" / "0.png"
    squares = make_tiled_processor().image_processor.square_images(make_image(0, 60, 20), 32, Image.Resampling.BICUBIC)
    pixels = torch.stack([teacher_image(square, 32) for square in squares])
    contents = Contents.read(folder)
    files = FeatureFiles(folder, contents)
    image = digest(path)
    assert square_key(image, 0) == image and files.find(square_key(image, len(squares))) is None
    for index, teacher in enumerate(teachers):
        with torch.no_grad():
            expected = match_grid(teacher(pixels), 4, "unshuffle")
        for number, features in enumerate(expected):
            stored = files.read(files.find(square_key(image, number)), index)
            restored = dequantize(*stored, torch.float32)[0]
            assert torch.nn.functional.cosine_similarity(restored, features, dim=-1).mean() > 0.999


@pytest.mark.parametrize("write", range(4))
def test_a_cache_that_stopped_between_the_tiles_of_an_image_continues(world, tmp_path, monkeypatch, write):
    monkeypatch.setattr(build, "BYTES_PER_FILE", 1)
    monkeypatch.setattr(build, "images_per_block", lambda cells: 8)  # files of 8 tiles, which divide some images
    folder, wrote = tmp_path / "cache", []
    write_features = build.write_features

    def stop(*args):
        if len(wrote) == write:
            raise KeyboardInterrupt
        wrote.append(write_features(*args))

    monkeypatch.setattr(build, "write_features", stop)
    with pytest.raises(KeyboardInterrupt):
        build_cache(str(world), None, str(folder))
    assert len(stored_images(subfolder(folder))) == 8 * write
    seen = []
    monkeypatch.setattr(build, "write_features", lambda *args: seen.extend(args[2]) or write_features(*args))
    build_cache(str(world), None, str(folder))
    assert len(seen) == len(set(seen)) == NUM_TILES - 8 * write
    assert len(stored_images(subfolder(folder))) == NUM_TILES


def test_an_image_that_is_replaced_by_a_larger_one_is_named(world, cache, tmp_path):

    images = shutil.copytree(world.parent / "images", tmp_path / "images")
    make_image(99, 40, 40).save(images / "0.png")
    options = [f"image_folder={images}", f"teacher_cache={cache}", "per_device_train_batch_size=10"]
    with pytest.raises(UserError, match=r"record '0': the cache .* has no features of its image .*0\.png"):
        losses(world, tmp_path / "run", *options)


def test_the_tiles_of_a_record_are_read_for_each_of_its_images(world, cache, tmp_path, monkeypatch):
    read, read_data = [], train_module.read_data

    def keep(*args):
        dataset, collator = read_data(*args)
        read.append((dataset, collator))
        return dataset, collator

    monkeypatch.setattr(train_module, "read_data", keep)
    losses(world, tmp_path / "run", f"teacher_cache={cache}")
    dataset, collator = read[0]
    tiles = count_tiles(make_tiled_records(COUNT))
    for index, number in enumerate(tiles):
        features = dataset[index].get("teacher_features", {})
        assert {len(teacher["values"]) for teacher in features.values()} == ({number} if number else set())
    batch = collator([dataset[index] for index in range(COUNT)])
    assert len(batch["teacher_features"]["vit"]["values"]) == len(batch["pixel_values"]) == sum(tiles)
    blank = collator([dataset[2]])
    assert len(blank["teacher_features"]["vit"]["values"]) == len(blank["pixel_values"]) == 1
