"""With tiles each image has as many tokens as its grid has features, wherever the processor is asked."""

import random
import re

import pytest
import torch
from PIL import Image

from hawaii import HawaiiProcessor
from hawaii.processing.image_processing_hawaii import HawaiiImageProcessor
from hawaii.tests.tiny.models import PINPOINTS, make_model, make_processor
from hawaii.tests.tiny.tiled_models import make_tiled_processor
from hawaii.tests.tiny.tiles import PUBLISHED_PINPOINTS, make_llava_next_processor, pad_tiles


# Width and height: 3, 3, 4 and 2 tiles, without the whole picture.
SIZES = [(50, 20), (12, 47), (31, 30), (32, 16)]
NUM_TILES = [4, 4, 5, 3]


def image(width, height):
    return Image.linear_gradient("L").convert("RGB").resize((width, height))


@pytest.fixture
def processor():
    return make_tiled_processor()


def test_texts_and_pixels_are_those_of_llava_nexts_processor_for_200_random_sizes(processor):
    """In 24 batches of prompts with several images, whose sides have from 1 to 300 pixels."""
    llava_next, draw = make_llava_next_processor(), random.Random(0)
    num_images = 0
    for _ in range(24):
        images = [image(*(round(300 ** draw.random()) for _ in range(2))) for _ in range(10)]
        images = [one for one in images if max(one.size) < 48 * min(one.size)]  # LLaVA-NeXT has no grid for others
        splits = [images[:4], images[4:5], images[5:], []]
        text = ["a <image> " * len(part) + "red" for part in splits]
        ours = processor(images=images, text=text, padding=True, return_tensors="pt")
        theirs = llava_next(images=images, text=text, padding=True, padding_side="left", return_tensors="pt")
        for name in ("input_ids", "attention_mask", "image_sizes"):
            assert torch.equal(ours[name], theirs[name])
        counts = processor.count_tiles(ours["image_sizes"].tolist())
        assert torch.equal(pad_tiles(ours["pixel_values"], counts), theirs["pixel_values"])
        num_images += len(images)
    assert num_images >= 200


def test_every_count_of_tokens_is_that_of_the_text(processor):
    images = [image(*size) for size in SIZES]
    heights_first = [(height, width) for width, height in SIZES]
    inputs = processor(images=images, text=["<image>"] * 4, padding=True, return_tensors="pt")
    in_text = (inputs["input_ids"] == processor.image_token_id).sum(dim=1).tolist()
    assert in_text == processor.count_image_tokens(heights_first) == [60, 76, 88, 52]
    data = processor._get_num_multimodal_tokens(image_sizes=heights_first)
    assert data.num_image_tokens == in_text and data.num_image_patches == NUM_TILES
    assert processor.count_tiles(heights_first) == NUM_TILES
    assert len(inputs["pixel_values"]) == sum(NUM_TILES)
    replaced = [processor.replace_image_token({"image_sizes": inputs["image_sizes"]}, index) for index in range(4)]
    assert [text.count("<image>") for text in replaced] == in_text
    make_model(text={"max_position_embeddings": 512}, image_grid_pinpoints=PINPOINTS)(**inputs)


def test_the_published_sizes_have_the_known_numbers_of_tokens():
    """As in LLaVA-NeXT: 576 for the whole picture, and 24 x 24 patches and newlines for each tile that is not cut."""
    processor = make_llava_next_processor(336, 14, PUBLISHED_PINPOINTS)
    sizes = [(672, 672), (336, 672), (1008, 336), (640, 480)]
    expected = [576 + 48 * 49, 576 + 24 * 49, 576 + 72 * 25, 576 + 48 * 37]
    assert processor._get_num_multimodal_tokens(image_sizes=sizes).num_image_tokens == expected
    ours = HawaiiProcessor(processor.image_processor, processor.tokenizer, patch_size=14)
    assert ours.image_grid_pinpoints == PUBLISHED_PINPOINTS  # LLaVA-NeXT's image processor is one with tiles
    assert ours.count_image_tokens(sizes) == expected


def test_inputs_have_the_sizes_of_images_and_text_alone_has_none(processor):
    inputs = processor(images=[image(50, 20)], text="<image> a", return_tensors="pt")
    assert (
        set(inputs)
        == {"input_ids", "attention_mask", "pixel_values", "image_sizes"}
        == set(processor.model_input_names)
    )
    assert inputs["image_sizes"].tolist() == [[20, 50]]
    assert set(processor(text=["a", "red"], return_tensors="pt")) == {"input_ids", "attention_mask"}
    assert set(processor(images=image(50, 20), return_tensors="pt")) == {"pixel_values", "image_sizes"}
    assert make_processor().model_input_names == ["input_ids", "attention_mask", "pixel_values"]


def test_without_tensors_all_values_are_lists_or_arrays(processor):
    inputs = processor(images=[image(50, 20), image(9, 9)], text="<image> a <image>")
    assert [list(size) for size in inputs["image_sizes"]] == [[20, 50], [9, 9]]
    assert sum(token == processor.image_token_id for token in inputs["input_ids"][0]) == 60 + 16 + 4 * 5


def test_images_may_be_one_list_or_one_list_per_prompt(processor):
    text = ["<image> a <image>", "red <image>"]
    first, second, third = (image(*size) for size in SIZES[:3])
    flat = processor(images=[first, second, third], text=text, padding=True, return_tensors="pt")
    nested = processor(images=[[first, second], [third]], text=text, padding=True, return_tensors="pt")
    assert all(torch.equal(flat[name], nested[name]) for name in flat)


def test_a_conversation_has_the_tokens_of_its_images(processor):
    messages = [
        {"role": "user", "content": [{"type": "image", "image": image(50, 20)}, {"type": "text", "text": "color ?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "red circle"}]},
        {"role": "user", "content": [{"type": "image", "image": image(31, 30)}, {"type": "text", "text": "yes ?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "no"}]},
    ]
    inputs = processor.apply_chat_template(
        messages,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        return_assistant_tokens_mask=True,
        return_mm_token_type_ids=True,
    )
    is_image = inputs["input_ids"] == processor.image_token_id
    assert is_image.sum() == 60 + 88
    assert torch.equal(inputs["mm_token_type_ids"].bool(), is_image)
    labelled = inputs["input_ids"][inputs["assistant_masks"].bool()]
    assert processor.tokenizer.convert_ids_to_tokens(labelled) == ["red", "circle", "</s>", "no", "</s>"]


@pytest.mark.parametrize("ratio", ["pad", "crop"])
def test_tiles_do_not_depend_on_the_aspect_ratio(ratio):
    inputs = make_tiled_processor(image_aspect_ratio=ratio)(images=image(50, 20), text="<image>", return_tensors="pt")
    expected = make_tiled_processor()(images=image(50, 20), text="<image>", return_tensors="pt")
    assert all(torch.equal(inputs[name], expected[name]) for name in expected)


def test_saving_and_loading_changes_nothing(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    loaded = HawaiiProcessor.from_pretrained(tmp_path)
    assert loaded.image_grid_pinpoints == PINPOINTS
    expected = processor(images=image(50, 20), text="<image> red", return_tensors="pt")
    inputs = loaded(images=image(50, 20), text="<image> red", return_tensors="pt")
    assert inputs.keys() == expected.keys() and all(torch.equal(inputs[name], expected[name]) for name in expected)


@pytest.mark.parametrize("pinpoints", [[[17, 32]], [], "16"])
def test_grids_are_checked_whenever_they_are_set(processor, tmp_path, pinpoints):
    processor.save_pretrained(tmp_path)
    message = "image_grid_pinpoints is .*; it must be a list"
    for load in (HawaiiImageProcessor.from_pretrained, HawaiiProcessor.from_pretrained):
        with pytest.raises(ValueError, match=message):
            load(tmp_path, image_grid_pinpoints=pinpoints)
    for part in (processor, processor.image_processor):
        with pytest.raises(ValueError, match=message):
            part.image_grid_pinpoints = pinpoints
    assert processor.image_grid_pinpoints == PINPOINTS


@pytest.mark.parametrize("pinpoints", [[[16, 32]], None])
def test_changed_grids_are_saved(processor, tmp_path, pinpoints):
    processor.image_grid_pinpoints = pinpoints
    processor.save_pretrained(tmp_path)
    loaded = HawaiiProcessor.from_pretrained(tmp_path)
    assert loaded.image_grid_pinpoints == processor.image_processor.to_dict()["image_grid_pinpoints"] == pinpoints
    assert "_image_grid_pinpoints" not in (tmp_path / "preprocessor_config.json").read_text()
    assert len(loaded(images=image(50, 20), return_tensors="pt")["pixel_values"]) == (3 if pinpoints else 1)


def test_different_numbers_of_image_tokens_and_images_are_refused(processor):
    with pytest.raises(ValueError, match=re.escape("2 <image> in the text but 1 images; give one image for each")):
        processor(images=[image(9, 9)], text="<image> <image>")
