"""Features of an image are found by its content, in complete files."""

import pickle

import pytest
import torch

from hawaii.files.digest import digest
from hawaii.files.user_error import UserError
from hawaii.training.teacher_cache.contents import CONTENTS_FILE, INDEX_FILE, CachedFeatures, Contents, Squares
from hawaii.training.teacher_cache.feature_files import (
    FeatureFiles,
    feature_files,
    stored_images,
    write_features,
    write_index,
)


OPTIONS = {"image_size": None, "image_mean": None, "image_std": None, "resample": None, "layer": None}


def make_contents(storage="bfloat16"):
    options = {**OPTIONS, "dtype": "float32"}
    teachers = [
        CachedFeatures("a", "a", "0", options, 8, [2, 2, 3]),
        CachedFeatures("b", "b", "1", options, 8, [4, 4, 2]),
    ]
    return Contents(storage, Squares("pad", [0, 0, 0], 8), 2, "unshuffle", teachers)


def make_features(first, count):
    """Features whose values are the number of the image, of two teachers."""
    numbers = torch.arange(first, first + count, dtype=torch.float32).view(-1, 1, 1)
    return [numbers.expand(-1, 4, 3).clone(), -numbers.expand(-1, 4, 8).clone()]


def name(number):
    # Digests with zeros at their ends, and a zero within.
    return digest(bytes([number]))[:26] + ("000000" if number % 2 else "00ff00")


@pytest.fixture
def folder(tmp_path):
    contents = make_contents()
    contents.write(tmp_path)
    for first, count in ((0, 3), (3, 2), (4, 3)):  # image 4 is in two files
        write_features(
            tmp_path, contents, [name(number) for number in range(first, first + count)], make_features(first, count)
        )
    write_index(tmp_path, contents)
    return tmp_path


def test_every_image_is_found_and_no_other(folder):
    files = pickle.loads(pickle.dumps(FeatureFiles(folder, make_contents())))
    assert len(files) == 7 and stored_images(folder) == {name(number) for number in range(7)}
    for number in range(7):
        place = files.find(name(number))
        (first,), (second,) = files.read(place, 0), files.read(place, 1)
        assert (first == number).all() and first.shape == (1, 4, 3)
        assert (second == -number).all() and second.shape == (1, 4, 8)
    assert files.find(name(7)) is None and files.find("0" * 32) is None and files.find("f" * 32) is None


def test_images_of_a_block_have_its_scale(tmp_path):
    contents = make_contents("int8")
    contents.write(tmp_path)
    features = [torch.randn(600, 4, 3), torch.randn(600, 4, 8)]
    write_features(tmp_path, contents, [digest(str(number).encode()) for number in range(600)], features)
    write_index(tmp_path, contents)
    files = FeatureFiles(tmp_path, contents)
    for number in (0, 255, 256, 599):
        for teacher in (0, 1):
            values, scale, offset = files.read(files.find(digest(str(number).encode())), teacher)
            assert values.dtype == torch.int8
            restored = values.float() * scale[:, None].float() + offset[:, None].float()
            assert (restored[0] - features[teacher][number]).abs().max() < 0.03


def test_contents_survive_their_file(folder):
    assert Contents.read(folder) == make_contents()


def test_names_of_teachers_do_not_change_the_folder():
    contents = make_contents()
    other = CachedFeatures("z", "elsewhere", "0", contents.teachers[0].options, 8, [2, 2, 3])
    same = Contents("bfloat16", contents.squares, 2, "unshuffle", [other, contents.teachers[1]])
    assert same.folder_name == contents.folder_name
    changed = Contents("bfloat16", Squares("crop", None, 8), 2, "unshuffle", contents.teachers)
    assert changed.folder_name != contents.folder_name


def test_a_cache_without_index_is_not_finished(folder):
    (folder / INDEX_FILE).unlink()
    with pytest.raises(UserError, match="is not finished: run `hawaii cache` again; it continues where"):
        FeatureFiles(folder, make_contents())


@pytest.mark.parametrize("damage", ["missing", "truncated", "empty"])
@pytest.mark.parametrize("is_index", [False, True])
def test_a_damaged_file_is_named(folder, damage, is_index):
    path = folder / INDEX_FILE if is_index else feature_files(folder)[1]
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"")
    problem = "is not finished" if is_index and damage == "missing" else f"{path.name} is (missing or )?damaged"
    with pytest.raises(UserError, match=problem):
        FeatureFiles(folder, make_contents())


def read_all(folder, contents):
    files = FeatureFiles(folder, contents)
    return [files.read(files.find(name(number)), teacher) for number in range(5) for teacher in (0, 1)]


@pytest.mark.parametrize("storage", ["int8", "bfloat16"])
@pytest.mark.parametrize("part", ["features", "index", "contents"])
def test_a_changed_byte_is_found_when_it_is_read_or_has_no_effect(tmp_path, storage, part):
    contents = make_contents(storage)
    contents.write(tmp_path)
    write_features(
        tmp_path, contents, [name(number) for number in range(5)], [part.sin() for part in make_features(0, 5)]
    )
    write_index(tmp_path, contents)
    whole = read_all(tmp_path, contents)
    path = {
        "features": feature_files(tmp_path)[0],
        "index": tmp_path / INDEX_FILE,
        "contents": tmp_path / CONTENTS_FILE,
    }
    path = path[part]
    content, found = path.read_bytes(), 0
    places = range(0, len(content), 3)  # each with another bit
    for place in places:
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        try:
            read = read_all(tmp_path, Contents.read(tmp_path))
        except UserError as error:
            assert path.name in str(error)
            found += 1
        else:
            assert all(map(torch.equal, sum(read, ()), sum(whole, ())))
    assert found > 0.5 * len(places)


def test_features_are_mapped_into_memory_not_read(tmp_path):
    contents = make_contents()
    write_features(tmp_path, contents, [name(number) for number in range(3)], make_features(0, 3))
    write_index(tmp_path, contents)
    files = FeatureFiles(tmp_path, contents)
    first, again = (files.read(files.find(name(1)), 0)[0] for _ in range(2))
    assert first.data_ptr() == again.data_ptr()
    maps = open("/proc/self/maps").read()
    assert str(feature_files(tmp_path)[0]) in maps
