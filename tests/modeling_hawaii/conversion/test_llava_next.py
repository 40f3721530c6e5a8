"""A student that starts from a LLaVA-NeXT cuts images into the same tiles and gives the same answers."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlavaNextForConditionalGeneration

from hawaii import HawaiiForConditionalGeneration
from hawaii.files.user_error import UserError
from hawaii.modeling_hawaii.conversion.llava import convert_llava
from hawaii.tests.tiny.llava import (
    IMAGE_TOKEN,
    PINPOINTS,
    SIGLIP,
    make_llava_next,
    save_as_transformers_4,
    save_clip,
    save_original,
)
from hawaii.tests.tiny.strangers import change_json


SIZES = [(14, 90), (5, 8)]  # heights and widths of a wide and a tiny image
# Both have a grid of 1 x 2 tiles, 4 x 8 patches. The wide one is in 2 of the rows; the tiny one, enlarged to a width
# of 25.6 pixels, is in 6 of the columns. A newline ends each row.
NUM_TOKENS = [16 + 2 * (8 + 1), 16 + 4 * (6 + 1)]
NUM_TILES = 3 + 3


@pytest.fixture
def inputs():
    """A prompt with two images."""
    ids = [1, 5, *[IMAGE_TOKEN] * NUM_TOKENS[0], 7, 8, *[IMAGE_TOKEN] * NUM_TOKENS[1], 10, 11]
    return {
        "input_ids": torch.tensor([ids]),
        "pixel_values": torch.randn(NUM_TILES, 3, 16, 16),
        "image_sizes": torch.tensor(SIZES),
    }


@torch.no_grad()
def logits(model, inputs):
    return model(**inputs).logits


def assert_equal_logits(student, llava, inputs):
    torch.testing.assert_close(logits(student, inputs), logits(llava, inputs), rtol=1e-6, atol=1e-5)


TEXTS = {
    "llama": {},
    "mistral": {"model_type": "mistral", "sliding_window": 8},
    "qwen2": {"model_type": "qwen2"},
    "qwen2, tied": {"model_type": "qwen2", "tie_word_embeddings": True},
}


@pytest.mark.parametrize("text", TEXTS)
def test_logits_equal_the_llavas_for_each_language_model(tmp_path, inputs, text):
    is_tied = TEXTS[text].get("tie_word_embeddings", False)
    make_llava_next(text=TEXTS[text], tie_word_embeddings=is_tied).save_pretrained(tmp_path)
    llava = LlavaNextForConditionalGeneration.from_pretrained(tmp_path).eval()
    student, unused = convert_llava(tmp_path)
    assert student.config.image_grid_pinpoints == PINPOINTS
    assert torch.equal(student.model.image_newline, llava.model.image_newline)
    assert_equal_logits(student, llava, inputs)
    assert all("vision_tower" in name for name in unused)
    options = {"max_new_tokens": 8, "do_sample": False}
    assert torch.equal(student.generate(**inputs, **options), llava.generate(**inputs, **options))


@pytest.mark.parametrize("form", ["transformers 4", "transformers 5", "names of the modules"])
def test_each_name_of_the_newline_is_known(tmp_path, inputs, form):
    llava = make_llava_next()
    if form == "transformers 4":
        save_as_transformers_4(llava, tmp_path)
    else:
        llava.save_pretrained(tmp_path, save_original_format=form == "transformers 5")
    names = {name for name in load_file(tmp_path / "model.safetensors") if "newline" in name}
    assert names == {"model.image_newline" if form == "names of the modules" else "image_newline"}
    assert_equal_logits(convert_llava(tmp_path).model, llava, inputs)


def test_a_llava_next_with_a_siglip_converts(tmp_path, inputs):
    llava = make_llava_next(
        vision=SIGLIP, vision_feature_layer=-1, image_grid_pinpoints=[[18, 36], [54, 18], [36, 36]]
    )
    llava.save_pretrained(tmp_path)
    student = convert_llava(tmp_path).model
    assert student.config.vision_feature_select_strategy == "full"
    assert_equal_logits(student, llava, inputs | {"pixel_values": torch.randn(NUM_TILES, 3, 18, 18)})


def test_the_default_pinpoints_are_those_of_transformers(tmp_path):
    vision = {"image_size": 336, "patch_size": 112}
    make_llava_next(vision=vision, image_grid_pinpoints=None).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    del values["image_grid_pinpoints"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    pinpoints = convert_llava(tmp_path).model.config.image_grid_pinpoints
    assert pinpoints == [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]


def test_a_model_adds_newlines_even_if_an_old_configuration_says_that_it_has_none(tmp_path, inputs):
    """transformers never read `use_image_newline_parameter`, which files of the Hub have."""
    make_llava_next(use_image_newline_parameter=False).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["use_image_newline_parameter"] is False
    llava = LlavaNextForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert_equal_logits(convert_llava(tmp_path).model, llava, inputs)


def test_a_converted_model_saves_and_loads(tmp_path, inputs):
    student = convert_llava(save_as_transformers_4(make_llava_next(), tmp_path)).model
    student.save_pretrained(tmp_path / "student")
    loaded, report = HawaiiForConditionalGeneration.from_pretrained(tmp_path / "student", output_loading_info=True)
    assert not any(report[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(logits(loaded.eval(), inputs), logits(student, inputs))


def test_new_adapters_add_nothing_yet(tmp_path, inputs):
    make_llava_next().save_pretrained(tmp_path)
    student = convert_llava(tmp_path, num_teacher_adapters=2, num_general_adapters=1, lora_rank=2).model
    assert torch.equal(logits(student, inputs), logits(convert_llava(tmp_path).model, inputs))


def in_own_vocabulary(student, inputs):
    """The same text with the token for images that a checkpoint in LLaVA's own form gets."""
    ids = inputs["input_ids"]
    return inputs | {"input_ids": torch.where(ids == IMAGE_TOKEN, student.config.image_token_index, ids)}


@pytest.mark.parametrize("has_tower", [False, True])
@pytest.mark.parametrize(
    ("model_type", "text"), [("llava_llama", "llama"), ("llava_mistral", "mistral"), ("llava_qwen", "qwen2")]
)
def test_llavas_own_form_gives_the_same_logits(tmp_path, inputs, model_type, text, has_tower):
    llava = make_llava_next(text=TEXTS[text])
    tower = save_clip(tmp_path / "clip", None if has_tower else llava)
    folder = save_original(llava, tmp_path / "llava", tower, has_tower=has_tower, num_files=2, model_type=model_type)
    student, unused = convert_llava(folder)
    assert student.config.text_config.model_type == text
    assert student.config.image_grid_pinpoints == PINPOINTS
    found = logits(student, in_own_vocabulary(student, inputs))
    torch.testing.assert_close(found[..., :40], logits(llava, inputs), rtol=1e-6, atol=1e-5)
    assert bool(unused) == has_tower and all("vision_tower" in name for name in unused)


@pytest.mark.parametrize(
    "pinpoints", ["[[32, 16], [16, 48], [32, 32]]", "[(32, 16), (16, 48), (32, 32)]"], ids=["lists", "tuples"]
)
def test_llavas_own_form_may_have_its_grids_in_a_string(tmp_path, pinpoints):
    llava = make_llava_next()
    folder = save_original(llava, tmp_path / "llava", save_clip(tmp_path / "clip"), image_grid_pinpoints=pinpoints)
    assert convert_llava(folder).model.config.image_grid_pinpoints == [[16, 32], [48, 16], [32, 32]]


@pytest.mark.parametrize("is_original", [False, True])
@pytest.mark.parametrize(
    ("shape", "message"),
    [(None, r"lacks: model\.image_newline"), (63, r"of unexpected shapes: model\.image_newline \[63\] instead of")],
    ids=["missing", "shape"],
)
def test_an_invalid_newline_is_named(tmp_path, is_original, shape, message):
    llava = make_llava_next()
    if is_original:
        folder = save_original(llava, tmp_path / "llava", save_clip(tmp_path / "clip"))
    else:
        llava.save_pretrained(folder := tmp_path / "llava", save_original_format=False)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.image_newline"]
    if shape is not None:
        tensors["model.image_newline"] = torch.zeros(shape)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=message):
        convert_llava(folder)


@pytest.mark.parametrize("pinpoints", [[[16, 20]], [[0, 16]], [[16]], []])
def test_grids_that_no_tiles_fill_are_refused(tmp_path, pinpoints):
    make_llava_next().save_pretrained(tmp_path)
    change_json(tmp_path / "config.json", image_grid_pinpoints=pinpoints)
    with pytest.raises(UserError, match=r"image_grid_pinpoints is \[.*; it must be a list of \[height, width\]"):
        convert_llava(tmp_path)
