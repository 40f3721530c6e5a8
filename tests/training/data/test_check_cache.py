"""Records with the same content are checked once; those with a problem and a few others are checked again."""

import json
import shutil

import pytest
from datasets import config

from hawaii.files.user_error import UserError
from hawaii.tests.tiny.models import make_processor
from hawaii.tests.tiny.training import make_record, save_data
from hawaii.training.data import records
from hawaii.training.data.checked import CheckedRows, save_checked
from hawaii.training.data.conversation_dataset import ConversationDataset, ConversationReader


@pytest.fixture(scope="module")
def processor():
    return make_processor()


@pytest.fixture
def folder(tmp_path):
    return save_data(tmp_path, [make_record(number) for number in range(5)])


@pytest.fixture
def checked(monkeypatch):
    """The ids of the records that are checked; of those that once were good, only the first one is."""
    monkeypatch.setattr(records, "NUM_LOOKED_AT", 1)
    found, check = [], ConversationReader._find_problem
    monkeypatch.setattr(
        ConversationReader, "_find_problem", lambda self, record: found.append(record.id) or check(self, record)
    )
    return found


def read(folder, processor, checked, images="images", **kwargs):
    """The ids of the usable records, and of those that were checked."""
    checked.clear()
    dataset = ConversationDataset(str(folder / "data.json"), str(folder / images), processor, **kwargs)
    return [record.id for record in dataset.records], list(checked)


def test_a_second_start_checks_some_records_only(folder, processor, checked):
    names = [str(number) for number in range(5)]
    assert read(folder, processor, checked) == (names, [*names, "0"])
    assert read(folder, processor, checked) == (names, ["0"])
    shutil.copy(folder / "data.json", folder / "other.json")
    (folder / "other.json").rename(folder / "data.json")  # the same content
    assert read(folder, processor, checked) == (names, ["0"])


def test_changed_records_and_another_image_folder_are_checked(folder, processor, checked):
    read(folder, processor, checked)
    (folder / "data.json").write_text(json.dumps([make_record(number) for number in range(3)]))
    assert read(folder, processor, checked)[1] == ["0", "1", "2", "0"]
    shutil.copytree(folder / "images", folder / "copied")
    assert read(folder, processor, checked, "copied")[1] == ["0", "1", "2", "0"]


def test_a_record_is_used_as_soon_as_its_image_is_there(folder, processor, checked):
    image = folder / "images" / "3.png"
    content = image.read_bytes()
    image.unlink()
    for _ in range(2):
        with pytest.raises(UserError, match=r"1 of 5 records .* record '3': its image .*3\.png is missing"):
            read(folder, processor, checked)
    assert checked == ["3", "0"]
    assert read(folder, processor, checked, bad_records="skip") == (["0", "1", "2", "4"], ["3", "0"])
    image.write_bytes(content)
    assert read(folder, processor, checked) == (["0", "1", "2", "3", "4"], ["3", "0"])


def test_a_folder_that_has_lost_its_images_is_an_error_at_the_start(folder, processor, checked):
    read(folder, processor, checked)
    shutil.rmtree(folder / "images")
    (folder / "images").mkdir()  # like a disk that is not mounted
    with pytest.raises(UserError, match="5 of 5 records .* cannot be used: record '0': its image .* is missing"):
        read(folder, processor, checked)


def test_an_image_that_is_lost_after_the_check_is_an_error_when_it_is_read(folder, processor, checked):
    ConversationDataset(str(folder / "data.json"), str(folder / "images"), processor)
    (folder / "images" / "2.png").unlink()
    dataset = ConversationDataset(str(folder / "data.json"), str(folder / "images"), processor)
    with pytest.raises(UserError, match=r"data\.json, record '2': its image .*2\.png cannot be read"):
        dataset[2]


@pytest.mark.parametrize("damaged", [b"", b"{", b"{}", b"[]", b'{"problems": 1, "image_states": {}}', b"\xff"])
def test_a_damaged_file_of_the_cache_is_made_again(folder, processor, monkeypatch, tmp_path, damaged):
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")
    paths = (str(folder / "data.json"), str(folder / "images"), processor)
    dataset = ConversationDataset(*paths)
    lengths = dataset.lengths()
    save_checked(dataset.check_key(dataset.records), CheckedRows([1] * 5, [2] * 5, [9] * 5, [1] * 5, {}, {}, ""))
    assert ConversationDataset(*paths).checked is not None
    for pattern in ("checked.json", "problems.json", "counts.npy"):
        (path,) = (tmp_path / "cache" / "hawaii").glob(f"*.{pattern}")
        path.write_bytes(damaged)
    for _ in range(2):
        dataset = ConversationDataset(*paths)
        assert dataset.checked is None and len(dataset) == 5 and dataset.lengths() == lengths
