"""The processor of a converted LLaVA-NeXT cuts images into the tiles that the model was trained on."""

import pytest
import torch
from PIL import Image

from hawaii import HawaiiForConditionalGeneration, HawaiiProcessor
from hawaii.__main__ import main
from hawaii.processing.chat_templates import load_chat_template
from hawaii.tests.tiny.language_models import FAMILIES
from hawaii.tests.tiny.llava import CLIP, PINPOINTS, make_llava_next, save_clip, save_original
from hawaii.tests.tiny.llava_next import MEAN, STD, TEMPLATES, save_llava_next
from hawaii.tests.tiny.strangers import change_json
from hawaii.tests.tiny.students import text_tokenizer
from hawaii.tests.tiny.training import save_image_processor
from hawaii.training.students import convert as convert_module


# With the widths and heights of `PINPOINTS` in the other order, the first three would have other tiles.
NUM_TILES = {(14, 90): 3, (5, 8): 3, (70, 11): 4, (33, 31): 5}  # by height and width


def convert(*words) -> int:
    return main(["convert", *map(str, words)])


def save_original_form(folder, llava=None, **fields):
    """LLaVA-1.6's own form, with the tokenizer and the encoder next to it."""
    tokenizer = text_tokenizer()
    tokenizer.chat_template = None
    llava = make_llava_next(text={"vocab_size": len(tokenizer)}) if llava is None else llava
    tower = save_clip(folder / "clip", llava)
    save_image_processor(tower, CLIP["image_size"], image_mean=MEAN, image_std=STD)
    tokenizer.save_pretrained(save_original(llava, folder / "llava", tower, **fields))
    return folder / "llava", llava


def test_the_processor_has_the_tiles_the_normalisation_and_the_template_of_the_llava(tmp_path):
    assert convert("llava", save_llava_next(tmp_path / "llava"), tmp_path / "student") == 0
    processor = HawaiiProcessor.from_pretrained(tmp_path / "student")
    student = HawaiiForConditionalGeneration.from_pretrained(tmp_path / "student")
    assert processor.image_grid_pinpoints == student.config.image_grid_pinpoints == PINPOINTS
    assert list(processor.image_processor.image_mean) == MEAN
    assert list(processor.image_processor.image_std) == STD
    assert processor.chat_template == TEMPLATES["llama3"]
    assert processor.image_token_id == student.config.image_token_index < 319  # rows to spare, which are kept
    assert student.get_input_embeddings().num_embeddings == 320
    assert processor.count_tiles(list(NUM_TILES)) == list(NUM_TILES.values())


@pytest.mark.parametrize("has_tower", [False, True])
def test_llavas_own_form_gives_the_answers_of_transformers_form(tmp_path, has_tower):
    folder, llava = save_original_form(tmp_path, has_tower=has_tower)
    assert convert("llava", folder, tmp_path / "student") == 0
    student = HawaiiForConditionalGeneration.from_pretrained(tmp_path / "student").eval()
    processor = HawaiiProcessor.from_pretrained(tmp_path / "student")
    assert processor.image_grid_pinpoints == student.config.image_grid_pinpoints == PINPOINTS
    assert processor.count_tiles(list(NUM_TILES)) == list(NUM_TILES.values())
    assert processor.image_aspect_ratio == "pad"
    assert processor.chat_template == load_chat_template("vicuna_v1")
    images = [Image.effect_noise((width, height), 100).convert("RGB") for height, width in NUM_TILES]
    text = ["<image> what color <image> ?", "<image> a <image> circle"]
    inputs = processor(images=images, text=text, padding=True, return_tensors="pt")
    assert len(inputs["pixel_values"]) == sum(NUM_TILES.values())
    with torch.no_grad():
        found = student(**inputs).logits
        # The same weights, with the row for images that the student got.
        embeddings = student.get_input_embeddings().weight
        llava.resize_token_embeddings(len(embeddings), mean_resizing=False)
        llava.get_input_embeddings().weight.copy_(embeddings)
        llava.lm_head.weight.copy_(student.lm_head.weight)
        llava.config.image_token_index = student.config.image_token_index
        expected = llava(**inputs).logits
    mask = inputs["attention_mask"].bool()
    torch.testing.assert_close(found[mask], expected[mask], rtol=1e-5, atol=1e-4)


def test_a_chat_template_of_the_tokenizer_is_used_if_the_processor_has_none(tmp_path):
    folder = save_llava_next(tmp_path / "llava", "qwen2")
    (folder / "chat_template.json").unlink()
    change_json(folder / "tokenizer_config.json", chat_template=FAMILIES["qwen2"].chat_template)
    assert convert("llava", folder, tmp_path / "student") == 0
    processor = HawaiiProcessor.from_pretrained(tmp_path / "student")
    content = [{"type": "image"}, {"type": "text", "text": "what ?"}]
    assert "<image>\nwhat ?<|im_end|>" in processor.apply_chat_template([{"role": "user", "content": content}])


@pytest.mark.parametrize(
    ("pinpoints", "problem"),
    [
        ([[32, 16], [16, 48], [32, 32]], "in its config.json but [[32, 16], [16, 48], [32, 32]] in its image"),
        (None, "in its config.json but None in its image processor's file"),
    ],
    ids=["others", "none"],
)
def test_an_image_processor_with_other_tiles_is_refused_before_the_weights_are_read(
    tmp_path, monkeypatch, capsys, pinpoints, problem
):
    folder = save_llava_next(tmp_path / "llava")
    if pinpoints is None:
        change_json(folder / "preprocessor_config.json", image_processor_type="CLIPImageProcessor")
    change_json(folder / "preprocessor_config.json", image_grid_pinpoints=pinpoints)
    monkeypatch.setattr(convert_module, "convert_llava", None)
    assert convert("llava", folder, tmp_path / "student") == 2
    error = capsys.readouterr().err
    assert f"{folder} has image_grid_pinpoints {PINPOINTS} {problem}" in error and error.count("\n") == 1
    assert not (tmp_path / "student").exists()


@pytest.mark.parametrize("is_original", [False, True])
def test_grids_that_no_tiles_fill_are_refused_before_the_weights_are_read(tmp_path, monkeypatch, capsys, is_original):
    if is_original:
        folder, _ = save_original_form(tmp_path, image_grid_pinpoints=[[32, 16], [24, 16]])
    else:
        folder = save_llava_next(tmp_path / "llava")
        for name in ("config.json", "preprocessor_config.json"):
            change_json(folder / name, image_grid_pinpoints=[[16, 32], [16, 24]])
    monkeypatch.setattr(convert_module, "convert_llava", None)
    assert convert("llava", folder, tmp_path / "student") == 2
    error = capsys.readouterr().err
    assert f"configuration of {folder}: image_grid_pinpoints is [[16, 32], [16, 24]]; it must be" in error
