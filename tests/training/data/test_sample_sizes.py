"""The numbers of tokens and tiles of all samples are known before an image is read, and are those of the samples."""

import datasets
import pytest
import torch
from PIL import Image

from hawaii.files.user_error import UserError
from hawaii.tests.tiny.tiled_data import (
    PINPOINTS,
    count_tiles,
    make_tiled_processor,
    make_tiled_records,
    save_tiled_data,
    write_tiled_recipe,
)
from hawaii.tests.tiny.training import make_dataset, make_image
from hawaii.training.checking.check import check
from hawaii.training.data.conversation_dataset import ConversationReader
from hawaii.training.data.mixture import MixedDataset


COUNT = 10


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def folder(tmp_path):
    return save_tiled_data(tmp_path, COUNT)


def sizes_of_samples(dataset):
    samples = [dataset[index] for index in range(len(dataset))]
    return [len(sample["input_ids"]) for sample in samples], [
        len(sample.get("pixel_values", ())) for sample in samples
    ]


def test_sizes_are_those_of_the_samples_and_only_headers_are_read(folder, monkeypatch):
    dataset = make_dataset(folder, make_tiled_processor())
    expected = sizes_of_samples(dataset)
    assert expected[1] == count_tiles(make_tiled_records(COUNT)) and max(expected[1]) == 8

    def refuse(image):
        raise AssertionError("pixels are read")

    monkeypatch.setattr(Image.Image, "load", refuse)
    assert dataset.measure() == expected


def test_sizes_of_a_share_are_those_of_its_samples(folder):
    dataset = make_dataset(folder, make_tiled_processor(), image_share=0.6)
    assert 0 < len(dataset) < COUNT
    assert dataset.measure() == sizes_of_samples(dataset)


def test_sizes_of_several_sources_are_those_of_their_samples(folder, tmp_path):
    other = save_tiled_data(tmp_path / "other", 4)
    mixed = MixedDataset([make_dataset(each, make_tiled_processor()) for each in (folder, other)], [1, 1])
    assert mixed.measure() == sizes_of_samples(mixed)


def test_without_tiles_each_image_is_one_square_whatever_its_size(folder, monkeypatch):
    dataset = make_dataset(folder, make_tiled_processor(None))
    expected = sizes_of_samples(dataset)
    monkeypatch.setattr(Image, "open", None)  # not even a header is read
    assert dataset.measure() == expected
    assert expected[1] == [len(record.images) for record in dataset.records]


def test_other_pinpoints_are_counted_again(folder):
    counts = [
        make_dataset(folder, make_tiled_processor(pinpoints)).measure() for pinpoints in (PINPOINTS, [[16, 16]], None)
    ]
    assert counts[0] != counts[1] != counts[2]
    dataset = make_dataset(folder, make_tiled_processor([[16, 16]]))
    assert counts[1] == sizes_of_samples(dataset)


def test_tiles_of_another_side_are_counted_again(folder):
    small = make_tiled_processor([[32, 32]])
    large = make_tiled_processor([[32, 32]], image_size=32, patch_size=8)
    assert small.num_image_tokens == large.num_image_tokens
    num_tiles = [make_dataset(folder, processor).measure()[1] for processor in (small, large)]
    assert max(num_tiles[0]) == 5 * 2 and max(num_tiles[1]) == 2 * 2


@pytest.mark.parametrize("is_checked", [False, True])
def test_an_image_that_is_replaced_by_one_of_another_size_is_counted_again(tmp_path, teacher_folders, is_checked):
    recipe = write_tiled_recipe(tmp_path, teacher_folders, COUNT, stages={"finetune": {}}, max_length=2048)
    if is_checked:
        check(str(recipe), num_processes=1)
    # As in the recipe, whose tokenizer and image processor decide the key of the check.
    dataset = make_dataset(tmp_path, make_tiled_processor())
    assert (dataset.checked is not None) == is_checked
    before = dataset.measure()
    assert before == sizes_of_samples(dataset)
    make_image(99, 40, 40).save(tmp_path / "images" / "0.png")
    dataset = make_dataset(tmp_path, make_tiled_processor())
    after = dataset.measure()
    assert after == sizes_of_samples(dataset)
    assert (before[1][0], after[1][0]) == (3, 5) and before[0][0] != after[0][0]
    if is_checked:
        check(str(recipe), num_processes=1)
        assert make_dataset(tmp_path, make_tiled_processor()).measure() == after


def test_the_check_counts_tiles_and_names_bad_images(tmp_path, teacher_folders, monkeypatch):
    recipe = write_tiled_recipe(tmp_path, teacher_folders, COUNT, stages={"finetune": {}}, max_length=2048)
    (tmp_path / "images" / "0.png").write_bytes(b"broken")
    (tmp_path / "images" / "3.png").unlink()
    check(str(recipe), ["bad_records=skip"], num_processes=1)
    dataset = make_dataset(tmp_path, make_tiled_processor(), bad_records="skip")
    assert dataset.checked is not None and len(dataset.checked.problems) == 2
    tiles = count_tiles(make_tiled_records(COUNT))
    assert dataset.checked.num_tiles == [1, *tiles[1:3], 1, *tiles[4:]]
    counted = []
    monkeypatch.setattr(ConversationReader, "read_image_sizes", lambda *args: counted.append(args))
    lengths, num_tiles = dataset.measure()
    assert not counted and num_tiles == [*tiles[1:3], *tiles[4:]] and all(lengths)


def test_a_broken_sample_is_replaced_by_one_with_no_more_tiles(folder):
    dataset = make_dataset(folder, make_tiled_processor(), bad_records="skip")
    lengths, num_tiles = dataset.measure()
    for number in (3, 6, 9):
        (folder / "images" / f"{number}.png").write_bytes(b"broken")
    for number in (3, 6, 9):
        sample = dataset[number]
        assert 0 < len(sample["pixel_values"]) <= num_tiles[number]
        assert len(sample["input_ids"]) <= lengths[number]


def test_an_image_without_a_header_has_no_length(folder):
    (folder / "images" / "0.png").write_bytes(b"broken")
    lengths, num_tiles = make_dataset(folder, make_tiled_processor()).measure()
    assert lengths[0] == 0 < min(lengths[1:]) and num_tiles[0] == 1


def test_samples_whose_images_are_truncated_name_the_bound(folder):
    dataset = make_dataset(folder, make_tiled_processor(), max_length=40)
    with pytest.raises(UserError, match="its 1 images and its text do not fit into max_length 40"):
        dataset[0]
    assert torch.tensor(dataset.measure()[0]).max() == 40
