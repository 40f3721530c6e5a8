"""An image data set has each image of the records, or of the folder, once."""

import json
import logging

import pytest
import torch
from PIL import Image

from hawaii.files.user_error import UserError
from hawaii.tests.tiny.encoders import make_encoder_processor
from hawaii.tests.tiny.training import make_image, make_record, save_data
from hawaii.training.data.images import ImageDataset, collate_images
from hawaii.training.data.reader import teacher_image
from hawaii.training.data.records import choose_share
from hawaii.training.sources.record import Record


def make_dataset(folder, data_path="data.json", **kwargs):
    path = str(folder / data_path) if data_path else None
    return ImageDataset(path, str(folder / "images"), make_encoder_processor(), teacher_image_size=32, **kwargs)


def paths(dataset):
    return [record.images[0] for record in dataset.records]


def write(folder, *records):
    (folder / "images").mkdir(exist_ok=True)
    make_image(7).save(folder / "images" / "good.png")
    (folder / "data.json").write_text(json.dumps(records))
    return folder


def test_a_sample_has_the_square_for_the_student_and_for_the_teachers(tmp_path):
    dataset = make_dataset(save_data(tmp_path, [make_record(0), make_record(1)]))
    sample = dataset[1]
    square = dataset.processor.square_image(Image.open(tmp_path / "images" / "1.png"))
    assert square.size == (17, 17)
    assert set(sample) == {"pixel_values", "teacher_images", "record_id"}
    expected = dataset.processor.image_processor(square, return_tensors="pt")["pixel_values"]
    assert sample["pixel_values"].shape == (1, 3, 16, 16) and torch.equal(sample["pixel_values"], expected)
    assert torch.equal(sample["teacher_images"][0], teacher_image(square, 32))


def test_a_batch_has_all_images_of_its_samples(tmp_path):
    dataset = make_dataset(save_data(tmp_path, [make_record(number) for number in range(3)]))
    batch = collate_images([dataset[2], dataset[0]])
    assert set(batch) == {"pixel_values", "teacher_images", "image_index", "record_ids"}
    assert batch["record_ids"] == ["'2'", "'0'"]
    assert batch["image_index"].tolist() == [0, 1]
    for name in ("pixel_values", "teacher_images"):
        assert torch.equal(batch[name], torch.cat([dataset[2][name], dataset[0][name]]))


def test_records_without_images_are_left_out_and_each_image_is_used_once(tmp_path):
    repeated = [make_record(0), make_record(1, image=False), make_record(2), make_record(0, questions=2)]
    assert paths(make_dataset(save_data(tmp_path, repeated))) == ["0.png", "2.png"]
    both = {"id": "both", "image": ["2.png", "0.png"]}
    assert paths(make_dataset(write(tmp_path, both, {"image": "0.png"}))) == ["2.png", "0.png"]


def test_conversations_are_not_read(tmp_path):
    records = [{"image": "good.png"}, {"image": "good.png", "conversations": "nonsense"}, {"conversations": []}]
    assert len(make_dataset(write(tmp_path, *records))) == 1


def test_without_a_data_file_all_images_of_the_folder_are_used_in_order(tmp_path):
    for name in ("b.png", "a/z.JPG", "a/b/c.webp", ".hidden.png", "a/.cache/d.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).touch()
    (tmp_path / "images" / "notes.txt").touch()
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "e.png").touch()
    (tmp_path / "images" / "link").symlink_to(tmp_path / "linked")
    assert paths(make_dataset(tmp_path, data_path=None)) == ["a/b/c.webp", "a/z.JPG", "b.png"]


def test_a_folder_or_records_without_an_image_are_errors(tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(UserError, match=r"There is no image in the folder .*images, nor in .* ends in \.bmp, \.gif"):
        make_dataset(tmp_path, data_path=None)
    write(tmp_path, make_record(1, image=False))
    with pytest.raises(UserError, match=r"None of the 1 records of .*data\.json has an image to learn from"):
        make_dataset(tmp_path)
    with pytest.raises(UserError, match="There is no image folder .*nowhere"):
        make_dataset(tmp_path / "nowhere", data_path=None)
    with pytest.raises(UserError, match=r"There is no data file .*other\.json"):
        make_dataset(tmp_path, data_path="other.json")


BAD_RECORDS = {
    "missing": ({"id": "7", "image": "gone.png"}, "record '7': its image .*gone.png is missing"),
    "parent": ({"id": "7", "image": "../out.png"}, r"record '7': its image \.\./out\.png is outside"),
    "number": ({"image": 5}, "record 1: its image is 5, not a path"),
    "no_record": ("text", "record 1: it is 'text', not a JSON object"),
}


@pytest.mark.parametrize("name", BAD_RECORDS)
def test_a_bad_record_raises_or_is_skipped(tmp_path, caplog, name):
    record, problem = BAD_RECORDS[name]
    write(tmp_path, {"image": "good.png"}, record)
    with pytest.raises(UserError, match=rf"1 of 2 records of .*data\.json cannot be used: {problem}.*bad_records: sk"):
        make_dataset(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert paths(make_dataset(tmp_path, bad_records="skip")) == ["good.png"]
    assert "cannot be used" in caplog.text


def test_links_to_images_are_followed_unless_an_option_refuses_them(tmp_path):
    write(tmp_path)
    make_image(1).save(tmp_path / "outside.png")
    (tmp_path / "images" / "link.png").symlink_to(tmp_path / "outside.png")
    dataset = make_dataset(tmp_path, data_path=None)
    assert paths(dataset) == ["good.png", "link.png"]
    assert torch.equal(dataset[1]["teacher_images"][0], teacher_image(make_image(1), 32))
    with pytest.raises(
        UserError, match=r"record 'link\.png': its image link\.png is a symbolic link.*follow_links is f"
    ):
        make_dataset(tmp_path, data_path=None, follow_links=False)


def test_a_broken_image_raises_when_it_is_read_or_is_replaced_by_the_next_one(tmp_path):
    write(tmp_path)
    (tmp_path / "images" / "bad.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"images, record 'bad\.png': its image .*bad\.png cannot be read"):
        make_dataset(tmp_path, data_path=None)[0]
    dataset = make_dataset(tmp_path, data_path=None, bad_records="skip")
    assert torch.equal(dataset[0]["pixel_values"], dataset[1]["pixel_values"])


def test_a_share_does_not_depend_on_the_order_of_the_images(tmp_path):
    save_data(tmp_path, [make_record(number) for number in range(30)])
    records = [Record(number, (f"{number}.png",)) for number in range(30)]
    expected = [records[index].images[0] for index in choose_share(records, 0.2, "")]
    assert paths(make_dataset(tmp_path, image_share=0.2)) == expected
    assert sorted(paths(make_dataset(tmp_path, data_path=None, image_share=0.2))) == sorted(expected)
    with pytest.raises(UserError, match="image_share 1e-06 selects no record with an image: there are 30 images"):
        make_dataset(tmp_path, image_share=1e-6)
