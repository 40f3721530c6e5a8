"""Objectives over images that are cut into tiles."""

import json

import pytest
import torch

from hawaii.tests.tiny.models import make_processor
from hawaii.tests.tiny.training import count, make_dataset, make_image, make_module, make_record
from hawaii.training.data.conversation_dataset import Collator
from hawaii.training.students.student import set_tiles


PINPOINTS = [[16, 32], [32, 16], [32, 32]]
SIZES = {0: (40, 18), 2: (17, 60), 3: (30, 31)}  # width and height: 3, 3 and 5 squares
NUM_TILES = [3, 3, 5]


@pytest.fixture(scope="module")
def processor():
    processor = make_processor()
    processor.image_processor.image_grid_pinpoints = PINPOINTS
    return processor


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiles")
    (folder / "images").mkdir()
    for number, size in SIZES.items():
        make_image(number, *size).save(folder / "images" / f"{number}.png")
    records = [make_record(number, questions=1 + number % 2, image=number in SIZES) for number in range(4)]
    (folder / "data.json").write_text(json.dumps(records), encoding="utf-8")
    return folder


def make_tiled_batch(folder, processor, distill_tiles=True):
    dataset = make_dataset(folder, processor, distill_tiles=distill_tiles)
    batch = Collator(processor, 32, distill_tiles=distill_tiles)([dataset[index] for index in range(len(dataset))])
    counted = count(batch)
    if not distill_tiles:
        counted["num_squares"] = torch.tensor(len(SIZES))
    return counted


def make_tiled_module(**kwargs):
    module = make_module(**kwargs)
    set_tiles(module.student, PINPOINTS)
    return module


@pytest.mark.parametrize("distill_tiles", [True, False])
def test_a_batch_has_the_squares_that_student_and_teachers_see(folder, processor, distill_tiles):
    batch = make_tiled_batch(folder, processor, distill_tiles)
    assert batch["pixel_values"].shape == (11, 3, 16, 16)
    assert batch["image_sizes"].tolist() == [[height, width] for width, height in SIZES.values()]
    assert batch["image_index"].tolist() == [0, 0, 0, 2, 2, 2, 3, 3, 3, 3, 3]
    assert len(batch["teacher_images"]) == (11 if distill_tiles else 3)
    assert distill_tiles or batch["distilled_index"].tolist() == [0, 3, 6]
    for index, sample in enumerate((0, 2, 3)):
        num_tokens = (batch["input_ids"][sample] == processor.image_token_id).sum()
        assert [num_tokens] == processor.count_image_tokens([batch["image_sizes"][index].tolist()])


def test_the_whole_picture_is_the_first_square_of_the_teachers(folder, processor):
    every, whole = (make_tiled_batch(folder, processor, distill_tiles) for distill_tiles in (True, False))
    assert torch.equal(every["teacher_images"][[0, 3, 6]], whole["teacher_images"])


@pytest.mark.parametrize("objective", ["hawaii", "llava", "move_kd", "radio"])
def test_the_text_loss_is_that_of_the_model(folder, processor, run, objective):
    module, batch = make_tiled_module(objective=objective), make_tiled_batch(folder, processor)
    _, terms = run(module, batch)
    names = ("input_ids", "attention_mask", "pixel_values", "image_sizes", "labels")
    expected = module.student(**{name: batch[name] for name in names}).loss
    torch.testing.assert_close(terms["text"], expected.detach())


@pytest.mark.parametrize("objective", ["hawaii", "move_kd", "radio"])
def test_terms_are_means_over_all_tiles(folder, processor, run, objective):
    module, batch = make_tiled_module(objective=objective), make_tiled_batch(folder, processor)
    _, terms = run(module, batch)
    alone = []
    for index in range(11):  # each square as the only one of its step
        one = {name: batch[name][[index]] for name in ("pixel_values", "teacher_images", "image_index")}
        # Without image tokens in the text the square's own features are not read.
        text = {"input_ids": batch["input_ids"].clamp(max=3), "image_sizes": torch.ones(1, 2, dtype=torch.long)}
        alone.append(run(module, {**batch, **text, **one, "num_squares": torch.tensor(1)})[1])
    names = [name for name in terms if name.split("/")[0] in ("fine", "coarse", "distillation")]
    assert names
    for name in names:
        torch.testing.assert_close(terms[name], torch.stack([each[name] for each in alone]).mean(), msg=name)


@pytest.mark.parametrize("sequential", [True, False])
@pytest.mark.parametrize("objective", ["hawaii", "move_kd", "radio"])
def test_only_the_whole_pictures_are_distilled_if_wanted(folder, processor, run, objective, sequential):
    module = make_tiled_module(objective=objective, sequential_passes=sequential)
    batch = make_tiled_batch(folder, processor, distill_tiles=False)
    squares = []
    module.student.model.vision_tower.register_forward_pre_hook(lambda _, args: squares.append(len(args[0])))
    _, terms = run(module, batch)
    # All squares are routed; only whole pictures pass the two adapters of teachers.
    expected = {"hawaii": [3, 3, 11] if sequential else [11 + 2 * 3]}.get(objective, [11])
    assert squares == expected
    whole = {name: batch[name][[0, 3, 6]] for name in ("pixel_values", "image_index")}
    text = {"input_ids": batch["input_ids"].clamp(max=3)}
    pictures = {name: value for name, value in batch.items() if name != "distilled_index"}
    _, alone = run(module, {**pictures, **text, **whole})
    for name in terms:
        if name.split("/")[0] in ("fine", "coarse", "distillation"):
            torch.testing.assert_close(terms[name], alone[name], msg=name)


@pytest.mark.parametrize("objective", ["hawaii", "llava", "move_kd", "radio"])
def test_the_newline_learns_from_the_answers(folder, processor, run, objective):
    module, batch = make_tiled_module(objective=objective), make_tiled_batch(folder, processor)
    run(module, batch)[0].backward()
    assert module.student.model.image_newline.grad.abs().sum() > 0


def test_a_batch_of_text_needs_no_tiles(folder, processor, run):
    dataset = make_dataset(folder, processor)
    batch = count(Collator(processor, 32)([dataset[1]]))
    assert batch["image_index"].tolist() == [-1] and batch["image_sizes"].tolist() == [[1, 1]]
    module = make_tiled_module()
    loss, terms = run(module, batch)
    assert terms["coarse"] == terms["fine"] == 0 and loss.isfinite()
    expected = module.student(batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"]).loss
    torch.testing.assert_close(terms["text"], expected.detach())
