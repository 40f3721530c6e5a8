"""Records become samples and samples become batches; errors name the record, the file and the fix."""

import json
import logging
import re

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image
from torch.utils.data import RandomSampler, SequentialSampler
from transformers.trainer_pt_utils import LengthGroupedSampler

from hawaii.files.user_error import UserError
from hawaii.processing.image_processing_hawaii import HawaiiImageProcessor
from hawaii.tests.tiny.models import make_processor
from hawaii.tests.tiny.training import make_dataset, make_image, make_record, save_data
from hawaii.training.data.conversation_dataset import Collator, ConversationDataset
from hawaii.training.data.reader import teacher_image


@pytest.fixture(scope="module")
def processor():
    return make_processor()


def write(folder, *records):
    """Writes records without their images."""
    (folder / "images").mkdir(exist_ok=True)
    (folder / "data.json").write_text(json.dumps(records))
    return folder


def test_a_data_set_has_its_first_question(tmp_path, processor):
    assert make_dataset(save_data(tmp_path, [make_record(0)]), processor).question == "what color is the shape ?"
    record = {**make_record(0), "conversations": [{"from": "human", "value": "<image>"}, TURNS[1]]}
    assert make_dataset(save_data(tmp_path, [record]), processor).question == ""


def test_a_sample_has_text_labels_instruction_and_images(tmp_path, processor):
    sample = make_dataset(save_data(tmp_path, [make_record(0)]), processor)[0]
    words = processor.tokenizer.convert_ids_to_tokens
    assert words(sample["input_ids"][sample["labels"] != -100]) == ["red", "</s>"]
    assert torch.equal(sample["labels"][sample["labels"] != -100], sample["input_ids"][sample["labels"] != -100])
    assert words(sample["prompt_ids"]) == ["what", "color", "is", "the", "shape", "?"]
    assert (sample["input_ids"] == processor.image_token_id).sum() == 16
    assert sample["pixel_values"].shape == (1, 3, 16, 16)
    assert sample["teacher_images"].shape == (1, 3, 32, 32)
    assert sample["teacher_images"].dtype == torch.uint8


def test_the_students_pixels_are_the_processors(tmp_path, processor):
    sample = make_dataset(save_data(tmp_path, [make_record(0), make_record(1)]), processor)[1]
    image = Image.open(tmp_path / "images" / "1.png")
    assert torch.equal(sample["pixel_values"], processor(images=image, return_tensors="pt")["pixel_values"])


@pytest.mark.parametrize("image_aspect_ratio", ["pad", "crop"])
def test_teachers_get_the_students_square(tmp_path, image_aspect_ratio):
    processor = make_processor(image_aspect_ratio=image_aspect_ratio)
    record = make_record(0)
    write(tmp_path, record)
    image = make_image(0, 64, 32)
    image.save(tmp_path / "images" / "0.png")
    sample = make_dataset(tmp_path, processor)[0]
    square = processor.square_image(image)
    assert square.size == ((64, 64) if image_aspect_ratio == "pad" else (32, 32))
    resized = Image.fromarray(sample["teacher_images"][0].permute(1, 2, 0).numpy())
    assert resized.tobytes() == square.resize((32, 32), Image.Resampling.BICUBIC).tobytes()


def test_without_teachers_there_are_no_images_for_teachers(tmp_path, processor):
    dataset = make_dataset(save_data(tmp_path, [make_record(0)]), processor, teacher_image_size=None)
    assert "teacher_images" not in dataset[0]
    assert "teacher_images" not in Collator(processor)([dataset[0]])


def test_a_list_of_images_keeps_its_order(tmp_path, processor):
    record = {**make_record(0), "image": ["0.png", "1.png"]}
    record["conversations"][0]["value"] = "<image>\nwhat is <image> ?"
    write(tmp_path, record)
    for number in range(2):
        make_image(number).save(tmp_path / "images" / f"{number}.png")
    sample = make_dataset(tmp_path, processor)[0]
    assert sample["pixel_values"].shape == (2, 3, 16, 16)
    first = processor(images=make_image(0), return_tensors="pt")["pixel_values"]
    assert torch.equal(sample["pixel_values"][:1], first)


def test_a_record_without_images_has_no_pixels(tmp_path, processor):
    sample = make_dataset(save_data(tmp_path, [make_record(0, image=False)]), processor)[0]
    assert set(sample) == {"input_ids", "labels", "prompt_ids", "record_id"}


def test_the_first_token_is_no_label_because_it_has_no_context(tmp_path):
    processor = make_processor(chat_template="plain")
    sample = make_dataset(save_data(tmp_path, [make_record(2, image=False)]), processor)[0]
    assert processor.tokenizer.convert_ids_to_tokens(sample["input_ids"]) == ["a", "shape"]
    assert sample["labels"].tolist() == [-100, sample["input_ids"][1]]


def test_a_missing_file_or_folder_is_named(tmp_path, processor):
    with pytest.raises(UserError, match="There is no image folder .*images"):
        make_dataset(tmp_path, processor)
    (tmp_path / "images").mkdir()
    with pytest.raises(UserError, match=r"There is no data file .*data\.json"):
        make_dataset(tmp_path, processor)


def bad_record(**changes):
    return {**make_record(7), "image": "good.png", **changes}


TURNS = make_record(7)["conversations"]
BAD_RECORDS = {
    "more_image_tokens": (
        bad_record(conversations=[{"from": "human", "value": "<image><image>"}, TURNS[1]]),
        "shows 2 images but it has 1 images",
    ),
    "fewer_image_tokens": (bad_record(image=["good.png", "good.png"]), "shows 1 images but it has 2 images"),
    "no_image": ({"id": "7", "conversations": TURNS}, "shows 1 images but it has 0 images"),
    "missing": (bad_record(image="gone.png"), "its image .*images/gone.png is missing"),
    "a_folder": (bad_record(image="."), "its image .* is not a file"),
    "parent": (bad_record(image="../outside.png"), r"its image \.\./outside.png is outside"),
    "absolute": (bad_record(image="/etc/hostname"), "its image /etc/hostname is outside"),
    "parent_of_a_folder": (bad_record(image="a/../../outside.png"), r"its image a/\.\./\.\./outside.png is outside"),
    "parent_of_a_link": (bad_record(image="linked/../outside.png"), "its image .*images/outside.png is missing"),
    "sibling": (bad_record(image="../images2/good.png"), r"its image \.\./images2/good.png is outside"),
    "broken_link": (bad_record(image="broken.png"), "its image .*broken.png is missing"),
    "no_path": (bad_record(image={"bytes": "00"}), r"its image is \{'bytes': '00'\}, not a path"),
    "null_byte": (bad_record(image="a\0b.png"), "its image is .*, not a path"),
    "surrogate_in_a_path": (bad_record(image="\ud83d.png"), r"its image '\\ud83d.png' cannot be looked up"),
    "long_name": (bad_record(image="a" * 300), "its image .* (is missing|cannot be looked up)"),
    "cycle_of_links": (bad_record(image="cycle.png"), "its image .* (is missing|cannot be looked up)"),
    "surrogate": (
        bad_record(conversations=[TURNS[0], {"from": "gpt", "value": "red \ud83d"}]),
        r"its text 'red \\ud83d' cannot be tokenized \(surrogates not allowed\)",
    ),
    "no_conversation": ({"id": "7"}, "it has no list of conversations"),
    "conversation_of_another_type": ({"id": "7", "conversations": "hello"}, "it has no list of conversations"),
    "empty_conversation": ({"id": "7", "conversations": []}, "it has no answer to learn"),
    "turn_of_another_type": ({"id": "7", "conversations": ["hello"]}, "a turn is 'hello'"),
}


@pytest.fixture
def folder(tmp_path):
    """A folder with a good image, links to an image and a folder outside, to nothing and to itself."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images2" / "deep").mkdir(parents=True)
    make_image(1).save(tmp_path / "images2" / "deep" / "1.png")
    (tmp_path / "images" / "linked").symlink_to(tmp_path / "images2" / "deep")
    (tmp_path / "images" / "broken.png").symlink_to(tmp_path / "gone.png")
    make_image(0).save(tmp_path / "images" / "good.png")
    make_image(0).save(tmp_path / "outside.png")
    (tmp_path / "images" / "link.png").symlink_to(tmp_path / "outside.png")
    (tmp_path / "images" / "cycle.png").symlink_to(tmp_path / "images" / "cycle.png")
    return tmp_path


@pytest.mark.parametrize(("record", "problem"), BAD_RECORDS.values(), ids=BAD_RECORDS)
def test_a_bad_record_raises_when_the_data_set_is_built(folder, processor, record, problem):
    write(folder, bad_record(id="good"), record)
    message = (
        f"1 of 2 records of .*data.json cannot be used: record '7': .*{problem}.*Fix them, or .*bad_records: skip"
    )
    with pytest.raises(UserError, match=message):
        make_dataset(folder, processor)


@pytest.mark.parametrize(("record", "problem"), BAD_RECORDS.values(), ids=BAD_RECORDS)
def test_a_bad_record_can_be_skipped_with_a_warning(folder, processor, caplog, record, problem):
    write(folder, bad_record(id="good"), record)
    with caplog.at_level(logging.WARNING):
        dataset = make_dataset(folder, processor, bad_records="skip")
    assert [record.id for record in dataset.records] == ["good"]
    assert re.search(f"1 of 2 records of .*record '7': .*{problem}.*They are skipped", caplog.text)


LINKED = ["link.png", "linked/1.png", "./linked/../good.png", "linked/../link.png"]


@pytest.mark.parametrize("as_link", [False, True], ids=["folder", "linked folder"])
@pytest.mark.parametrize("path", LINKED)
def test_links_that_the_user_put_into_the_folder_are_followed(folder, processor, path, as_link):
    write(folder, bad_record(image=path))
    if as_link:
        (folder / "images").rename(folder / "blobs")
        (folder / "images").symlink_to("blobs")
    expected = processor(images=make_image(int(path == "linked/1.png")), return_tensors="pt")["pixel_values"]
    assert torch.equal(make_dataset(folder, processor)[0]["pixel_values"], expected)


@pytest.mark.parametrize("path", ["link.png", "linked/1.png"])
def test_an_option_refuses_links(folder, processor, path):
    write(folder, bad_record(id="good"), bad_record(image=path))
    (folder / "images").rename(folder / "blobs")
    (folder / "images").symlink_to("blobs")  # the image folder itself may be a link
    problem = f"record '7': its image {path} is a symbolic link, or in a linked folder, and follow_links is false"
    with pytest.raises(UserError, match=f"1 of 2 records of .*: {problem}"):
        make_dataset(folder, processor, follow_links=False)


def save_picture(folder, image, **options):
    image.save(folder / "images" / "picture.png", **options)
    write(folder, bad_record(image="picture.png"))
    return image


TURNED = Image.Exif()
TURNED[0x0112] = 6
PICTURES = {
    "16 bits": (Image.fromarray(np.arange(0, 65536, 512, dtype=np.uint16).reshape(8, 16)), {}),
    "opacity": (make_image(0, 20, 10).convert("RGBA"), {}),
    "orientation": (make_image(0, 20, 10), {"exif": TURNED}),
    "strip": (make_image(0, 3000, 2), {}),
    "pixel": (make_image(0, 1, 1), {}),
}


@pytest.mark.parametrize(("image", "options"), PICTURES.values(), ids=PICTURES)
def test_training_sees_the_pixels_of_every_other_route(folder, processor, image, options):
    save_picture(folder, image, **options)
    path = folder / "images" / "picture.png"
    sample = make_dataset(folder, processor, teacher_image_size=24)[0]
    assert torch.equal(sample["pixel_values"], processor(images=path, return_tensors="pt")["pixel_values"])
    content = [{"type": "image", "url": str(path)}]
    inputs = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=True, return_dict=True)
    assert np.array_equal(inputs["pixel_values"], sample["pixel_values"])
    expected = teacher_image(processor.square_image(path), 24)
    assert (sample["teacher_images"][0].int() - expected.int()).abs().max() <= 1  # equal but for a strip


def test_a_format_of_another_program_is_refused_in_training(folder, processor, monkeypatch):
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was called"))
    (folder / "images" / "picture.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    )
    write(folder, bad_record(image="picture.png"))
    problem = (
        r"record '7': its image .*picture\.png cannot be read \(.*without other programs; convert it to PNG or JPEG"
    )
    with pytest.raises(UserError, match=problem):
        make_dataset(folder, processor)[0]


def test_too_many_pixels_are_named_in_training(folder, processor, monkeypatch):
    save_picture(folder, make_image(0, 30, 30))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(
        UserError, match=r"record '7': its image .*picture\.png cannot be read \(.*more than 200 pixels"
    ):
        make_dataset(folder, processor)[0]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't allocate memory")])
def test_a_machine_without_memory_makes_no_bad_records(folder, processor, monkeypatch, error):
    """Otherwise the samples would depend on the load of the machine."""
    dataset = make_dataset(save_data(folder, [make_record(0), make_record(1)]), processor, bad_records="skip")

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(HawaiiImageProcessor, "square_image", fail)
    with pytest.raises(type(error)):
        dataset[0]


@pytest.mark.parametrize("call", ["__call__", "square_image"])
def test_an_image_that_cannot_be_made_square_is_a_bad_one(folder, processor, monkeypatch, call):
    dataset = make_dataset(save_data(folder, [make_record(0), make_record(1)]), processor, bad_records="skip")
    expected = dataset[1]["record_id"]

    original = getattr(HawaiiImageProcessor, call)

    def fail(self, image, *args, **kwargs):
        if image.tobytes() == bad:
            raise ValueError("too long")
        return original(self, image, *args, **kwargs)

    bad = Image.open(folder / "images" / "0.png").convert("RGB").tobytes()
    monkeypatch.setattr(HawaiiImageProcessor, call, fail)
    assert dataset[0]["record_id"] == expected
    dataset.bad_records = "error"
    with pytest.raises(UserError, match=r"its image .*0\.png cannot be read \(too long\)"):
        dataset[0]


def test_an_absolute_path_may_name_an_image_in_the_folder(folder, processor):
    write(folder, bad_record(image=str(folder / "images" / "good.png")))
    assert len(make_dataset(folder, processor)) == 1


@pytest.fixture
def three(folder, processor):
    for number in range(3):
        make_image(number).save(folder / "images" / f"{number}.png")
    write(folder, *(bad_record(id=number, image=f"{number}.png") for number in range(3)))
    return make_dataset(folder, processor)


def test_an_iteration_ends(three):
    assert len(list(three)) == 3


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("kind", [int, np.int64, torch.tensor, lambda number: number - 3])
def test_an_index_may_be_of_any_integer_type_and_negative(three, number, kind):
    expected = three.processor(images=make_image(number), return_tensors="pt")["pixel_values"]
    assert torch.equal(three[kind(number)]["pixel_values"], expected)


@pytest.mark.parametrize("index", [3, 7, -4, np.int64(3), torch.tensor(-4)])
def test_an_index_past_the_end_is_an_index_error(three, index):
    with pytest.raises(IndexError, match=rf"data\.json has 3 records; there is no sample {int(index)}\."):
        three[index]


def test_an_index_that_is_no_integer_is_a_type_error(three):
    for index in (1.5, "1", slice(2), None):
        with pytest.raises(TypeError):
            three[index]


def test_skipping_stays_within_the_data(folder, processor):
    (folder / "images" / "bad.png").write_bytes(b"no image")
    write(folder, bad_record(id="good"), bad_record(image="bad.png"))
    dataset = make_dataset(folder, processor, bad_records="skip")
    assert all(torch.equal(sample["pixel_values"], dataset[0]["pixel_values"]) for sample in dataset)
    with pytest.raises(IndexError):
        dataset[2]


def test_samplers_of_transformers_and_torch_find_their_indices(three):
    lengths = [len(sample["input_ids"]) for sample in three]
    for sampler in (
        LengthGroupedSampler(2, dataset=three, model_input_name="input_ids"),
        RandomSampler(three),
        SequentialSampler(three),
        RandomSampler(three, replacement=True, num_samples=7),
    ):
        assert all(len(three[index]["input_ids"]) == lengths[index] for index in sampler)


def test_a_record_without_an_id_is_named_by_its_index_in_the_file(folder, processor):
    without_id = [{name: value for name, value in bad_record().items() if name != "id"} for _ in range(3)]
    without_id[0]["image"] = "gone.png"
    dataset = make_dataset(write(folder, *without_id), processor, bad_records="skip")
    assert [record.id for record in dataset.records] == [1, 2]


def test_an_error_names_at_most_five_bad_records(folder, processor):
    write(folder, *(bad_record(id=str(number), image="gone.png") for number in range(9)))
    with pytest.raises(UserError, match="9 of 9 records") as error:
        make_dataset(folder, processor)
    assert str(error.value).count("is missing") == 5


def test_skipping_fails_if_all_records_are_bad(folder, processor):
    write(folder, bad_record(image="gone.png"))
    with pytest.raises(UserError, match="1 of 1 records .* cannot be used"):
        make_dataset(folder, processor, bad_records="skip")


def test_a_leading_turn_of_the_assistant_is_dropped(folder, processor):
    record = bad_record()
    write(folder, {**record, "conversations": [{"from": "gpt", "value": "hello"}, *record["conversations"]]}, record)
    dataset = make_dataset(folder, processor)
    assert torch.equal(dataset[0]["input_ids"], dataset[1]["input_ids"])


def png_with_a_broken_chunk():
    """Makes an image for which Pillow raises a `SyntaxError`."""
    header = b"\x89PNG\r\n\x1a\n"
    return header + b"\x00\x00\x00\x0dIHDR\x00\x00\x00\x10\x00\x00\x00\x10\x08\x02\x00\x00\x00\x90\x91h6" + b"\0" * 64


@pytest.fixture(params=["text", "empty", "truncated", "chunk"])
def broken(request, folder):
    """Three records, the second of which has a broken image."""
    good = (folder / "images" / "good.png").read_bytes()
    content = {
        "text": b"no image",
        "empty": b"",
        "truncated": good[: len(good) // 2],
        "chunk": png_with_a_broken_chunk(),
    }
    (folder / "images" / "broken.png").write_bytes(content[request.param])
    return write(folder, bad_record(id="a"), bad_record(id="b", image="broken.png"), bad_record(id="c"))


def test_a_broken_image_raises_when_its_sample_is_read(broken, processor):
    dataset = make_dataset(broken, processor)
    dataset[0]
    with pytest.raises(UserError, match=r"json, record 'b': its image .*broken\.png cannot be read .*Fix it, or set"):
        dataset[1]


def test_a_broken_image_can_be_skipped_with_a_warning(broken, processor, caplog):
    dataset = make_dataset(broken, processor, bad_records="skip")
    with caplog.at_level(logging.WARNING):
        sample = dataset[1]
    assert torch.equal(sample["input_ids"], dataset[2]["input_ids"])
    assert "record 'b': its image" in caplog.text and "The next one takes its place" in caplog.text


def test_skipping_fails_if_every_image_is_broken(folder, processor):
    (folder / "images" / "good.png").write_bytes(b"no image")
    dataset = make_dataset(write(folder, bad_record(id="a"), bad_record(id="b")), processor, bad_records="skip")
    with pytest.raises(UserError, match=r"No record of .*data\.json can be read"):
        dataset[1]


def test_a_long_sample_is_truncated_at_its_end(folder, processor):
    write(folder, {**make_record(0, questions=3), "image": "good.png"})
    full = make_dataset(folder, processor)[0]
    length = (full["labels"] != -100).nonzero()[0].item() + 3  # after the first of three answers
    truncated = make_dataset(folder, processor, max_length=length)[0]
    assert torch.equal(truncated["input_ids"], full["input_ids"][:length])
    assert torch.equal(truncated["labels"], full["labels"][:length])
    # Truncated instructions must not score the image patches either.
    assert torch.equal(truncated["prompt_ids"], full["prompt_ids"][: len(full["prompt_ids"]) // 3])


def test_a_sample_whose_images_do_not_fit_is_an_error(folder, processor):
    write(folder, bad_record())
    length = make_dataset(folder, processor)[0]["input_ids"].tolist().index(processor.image_token_id) + 10
    dataset = make_dataset(folder, processor, max_length=length)
    with pytest.raises(UserError, match=f"record '7': its 1 images and its text do not fit into max_length {length}"):
        dataset[0]


def test_a_sample_whose_answer_is_truncated_is_an_error(folder, processor):
    write(folder, bad_record())
    length = (make_dataset(folder, processor)[0]["labels"] != -100).nonzero()[0].item()
    with pytest.raises(UserError, match=f"record '7': truncation to max_length {length} removes all of its answers"):
        make_dataset(folder, processor, max_length=length)[0]


@pytest.fixture
def samples(tmp_path, processor):
    """One question about an image, one without an image, two about an image."""
    records = [make_record(0), make_record(1, image=False), make_record(2, questions=2)]
    dataset = make_dataset(save_data(tmp_path, records), processor)
    return [dataset[index] for index in range(3)]


def test_a_batch_is_padded_on_the_right(samples, processor):
    batch = Collator(processor, 32)(samples)
    for index, sample in enumerate(samples):
        length = len(sample["input_ids"])
        assert torch.equal(batch["input_ids"][index, :length], sample["input_ids"])
        assert torch.equal(batch["labels"][index, :length], sample["labels"])
        assert (batch["input_ids"][index, length:] == processor.tokenizer.pad_token_id).all()
        assert (batch["labels"][index, length:] == -100).all()
        assert batch["attention_mask"][index].tolist() == [1] * length + [0] * (batch["input_ids"].shape[1] - length)
        prompt_length = len(sample["prompt_ids"])
        assert torch.equal(batch["prompt_ids"][index, :prompt_length], sample["prompt_ids"])
        assert batch["prompt_mask"][index].sum() == batch["prompt_mask"][index, :prompt_length].sum() == prompt_length


def test_a_batch_has_the_position_of_each_label(samples, processor):
    batch = Collator(processor, 32)(samples)
    labels, index = batch["labels"].flatten().tolist(), batch["label_index"].tolist()
    assert index == [position for position, label in enumerate(labels) if label != -100]


def test_a_batch_has_the_sample_of_each_image(samples, processor):
    for name in ("pixel_values", "teacher_images"):
        samples[2][name] = samples[2][name].repeat(2, 1, 1, 1)
    batch = Collator(processor, 32)(samples)
    assert batch["image_index"].tolist() == [0, 2, 2]
    assert batch["pixel_values"].shape == (3, 3, 16, 16)
    assert batch["teacher_images"].shape == (3, 3, 32, 32)


@pytest.mark.parametrize("record_id", ["a/b.png", 7, None, {"part": 1}], ids=repr)
def test_a_batch_has_the_ids_of_its_records_as_text(tmp_path, processor, record_id):
    folder = save_data(tmp_path, [make_record(0), make_record(1, image=False)])
    records = json.loads((folder / "data.json").read_text())
    records[0]["id"] = record_id
    (folder / "data.json").write_text(json.dumps(records))
    dataset = make_dataset(folder, processor)
    batch = Collator(processor, 32)([dataset[1], dataset[0]])
    expected = {None: "0"}.get(record_id, repr(record_id)) if not isinstance(record_id, dict) else "\"{'part': 1}\""
    assert batch["record_ids"] == ["'1'", expected]  # a record without an id is named by its index


def test_a_record_that_takes_the_place_of_a_broken_one_brings_its_own_id(tmp_path, processor):
    folder = save_data(tmp_path, [make_record(0), make_record(1)])
    (folder / "images" / "0.png").write_bytes(b"broken")
    dataset = make_dataset(folder, processor, bad_records="skip")
    assert dataset[0]["record_id"] == "'1'"


def test_a_batch_without_images_gets_one_blank_image(samples, processor):
    batch = Collator(processor, 32)([samples[1], samples[1]])
    assert batch["image_index"].tolist() == [-1]
    assert torch.equal(batch["pixel_values"], torch.zeros(1, 3, 16, 16))
    assert batch["teacher_images"].dtype == torch.uint8


def test_a_tokenizer_without_a_padding_token_pads_with_its_end_token(samples):
    processor = make_processor()
    processor.tokenizer.pad_token = None
    batch = Collator(processor, 32)(samples)
    assert batch["input_ids"][1, -1] == processor.tokenizer.eos_token_id


def test_a_template_is_checked_when_the_first_sample_is_read(folder):
    processor = make_processor()
    processor.chat_template = "{{ messages }}"
    dataset = ConversationDataset(str(write(folder, bad_record()) / "data.json"), str(folder / "images"), processor)
    problem = r"before an answer differently without the answer.* such as vicuna_v1\. Fix it, or set"
    with pytest.raises(UserError, match=problem):
        dataset[0]


@pytest.mark.parametrize("policy", ["error", "skip"])
def test_an_error_of_the_program_is_not_reported_as_a_bad_record(tmp_path, monkeypatch, policy):
    records = [make_record(number) for number in range(3)]
    dataset = make_dataset(save_data(tmp_path, records), make_processor(), bad_records=policy)
    monkeypatch.setattr(dataset, "_read_images", lambda record: [].index(1))
    with pytest.raises(ValueError, match="is not in list") as caught:
        dataset[0]
    assert not isinstance(caught.value, UserError)
