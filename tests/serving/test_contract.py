"""A published folder has all that vLLM's backend for models of transformers reads and calls."""

import json
from itertools import product

import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from hawaii import HawaiiForConditionalGeneration, HawaiiProcessor
from hawaii.modeling_hawaii.modeling_hawaii import HawaiiModel
from hawaii.tests.serving.small_engine import SmallEngine
from hawaii.tests.tiny.models import PINPOINTS, make_model, make_processor


SIGLIP = {"has_class_token": False, "has_pre_layer_norm": False, "has_patch_bias": True}
LINEAR = {"adapter_placement": "linear", "lora_bias": True, "router_hidden_size": None}
MODELS = {
    "untied": {},
    "tied": {"text": {"tie_word_embeddings": True}},
    "biased head": {"head_bias": True},
    "siglip": {"vision": SIGLIP},
    "linear adapters": {"vision": LINEAR},
    "tiles": {"image_grid_pinpoints": PINPOINTS},
}
IMAGES = [Image.effect_noise(size, 80).convert("RGB") for size in ((16, 16), (40, 24), (9, 30))]
# Tiny, wide, high and huge ones.
EXTREME_IMAGES = [Image.effect_noise(size, 80).convert("RGB") for size in ((1, 1), (150, 4), (3, 90), (1200, 700))]
PROMPTS = [
    ("USER: <image>\nwhat color is it ? ASSISTANT:", IMAGES[:1]),
    ("USER: is a circle a shape ? ASSISTANT:", []),
    ("USER: <image>\n<image>\n<image>\nred or blue ? ASSISTANT:", IMAGES),
    ("<s> USER: <image>\nthe shape ? ASSISTANT:", IMAGES[2:]),
    ("USER: <image>\n<image>\n<image>\n<image>\nwhat is in the image ? ASSISTANT:", EXTREME_IMAGES),
]


def save_folder(folder, **kwargs):
    torch.manual_seed(0)
    kwargs["text"] = {"max_position_embeddings": 1024, **kwargs.get("text", {})}
    make_model(**kwargs).save_pretrained(folder)
    make_processor(image_grid_pinpoints=kwargs.get("image_grid_pinpoints")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=MODELS)
def folder(request, tmp_path_factory):
    return save_folder(tmp_path_factory.mktemp("published") / "served", **MODELS[request.param])


@pytest.fixture(scope="module")
def engine(folder):
    return SmallEngine(folder)


@pytest.fixture(scope="module")
def any_engine(tmp_path_factory):
    """An engine of one folder, for facts that do not depend on the model."""
    return SmallEngine(save_folder(tmp_path_factory.mktemp("published") / "served"))


@pytest.fixture(scope="module")
def tiled_engine(tmp_path_factory):
    """An engine of a folder with tiles."""
    return SmallEngine(save_folder(tmp_path_factory.mktemp("published") / "served", **MODELS["tiles"]))


def test_every_weight_has_a_place_and_every_parameter_a_weight(engine):
    assert not engine.missing and not engine.unexpected


def test_an_engine_computes_the_logits_of_the_model_for_mixed_batches(engine, folder):
    model = HawaiiForConditionalGeneration.from_pretrained(folder).eval()
    processor = HawaiiProcessor.from_pretrained(folder)
    for prompts in (PROMPTS, PROMPTS[::-1], PROMPTS[1:2]):
        for logits, (text, images) in zip(engine.logits(prompts), prompts, strict=True):
            with torch.no_grad():
                expected = model(**processor(images=images or None, text=text, return_tensors="pt")).logits[0]
            torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert engine.batch.layers == set(range(engine.text_config.num_hidden_layers))


def test_a_sharded_folder_has_the_same_weights(tmp_path):
    folder = save_folder(tmp_path / "whole")
    HawaiiForConditionalGeneration.from_pretrained(folder).save_pretrained(tmp_path / "shards", max_shard_size="50KB")
    HawaiiProcessor.from_pretrained(folder).save_pretrained(tmp_path / "shards")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    engine = SmallEngine(tmp_path / "shards")
    assert not engine.missing and not engine.unexpected
    for logits, expected in zip(engine.logits(PROMPTS), SmallEngine(folder).logits(PROMPTS), strict=True):
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_the_configuration_says_how_the_folder_is_served(any_engine):
    values = json.loads((any_engine.folder / "config.json").read_text())
    config = any_engine.config
    assert values["architectures"] == ["HawaiiForConditionalGeneration"]
    # The configuration before the models, the base model before those with a head.
    assert list(values["auto_map"])[:2] == ["AutoConfig", "AutoModel"]
    assert config.get_text_config() is config.text_config is not config  # hence a model of several modalities
    assert config.image_token_id == any_engine.processor.image_token_id
    assert config.tie_word_embeddings == config.text_config.tie_word_embeddings
    for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"):
        assert isinstance(values["text_config"][name], int)
    # By these vLLM takes a language model for a sparse one, whose experts it would replace.
    assert not [name for name in values["text_config"] if "expert" in name or "moe" in name.lower()]
    assert "moe" not in values["architectures"][0].lower()


def test_the_classes_of_the_folder_take_the_attention_of_an_engine(any_engine):
    names = [found.__name__ for found in any_engine.resolve()]
    assert names == ["HawaiiConfig", "HawaiiModel", *["HawaiiForConditionalGeneration"] * (len(names) - 2)]
    assert all(found.is_backend_compatible() for found in any_engine.resolve()[1:])
    assert any_engine.decoder_class.__name__ == "LlamaModel"
    assert any_engine.encoder_class.__name__ == "HawaiiVisionModel"
    assert HawaiiModel.base_model_prefix == "model" and HawaiiModel._keys_to_ignore_on_load_unexpected is None


def test_the_attention_of_the_encoder_is_not_the_engines(any_engine):
    attention = {name: module for name, module in any_engine.model.named_modules() if hasattr(module, "layer_idx")}
    assert attention and all(name.startswith("language_model.") for name in attention)
    assert any_engine.config.vision_config._attn_implementation != any_engine.text_config._attn_implementation


def test_the_processor_says_what_replaces_each_image(any_engine):
    processor = any_engine.processor
    assert processor.tokenizer(processor.image_token, add_special_tokens=False)["input_ids"] == [
        processor.image_token_id
    ]
    assert any_engine.replacements(IMAGES) == [[processor.image_token_id] * 16] * 3
    for size in ([10_000, 10_000], [1, 700], [16, 16]):
        counts = processor._get_num_multimodal_tokens(image_sizes=(size,))
        assert (counts["num_image_tokens"], counts["num_image_patches"]) == ([16], [1])
    assert processor.image_processor.size == {"height": 16, "width": 16}  # the size of the images of a trial run
    # Options that `--mm-processor-kwargs` may set.
    assert "padding" in processor.valid_processor_kwargs.__annotations__["text_kwargs"].__annotations__
    assert "do_resize" in processor.image_processor.valid_kwargs.__annotations__


def test_an_images_pixels_do_not_depend_on_the_images_beside_it(any_engine):
    together = any_engine.process(IMAGES)
    assert together.keys() - {"text_replacement_offsets", "mm_token_type_ids"} == {
        "input_ids",
        "attention_mask",
        "pixel_values",
    }
    alone = [any_engine.process([image])["pixel_values"] for image in IMAGES]
    assert torch.equal(together["pixel_values"], torch.cat(alone))


def test_the_processor_says_what_replaces_each_image_in_tiles(tiled_engine):
    processor = tiled_engine.processor
    images = [*IMAGES, *EXTREME_IMAGES]
    counts = processor._get_num_multimodal_tokens(image_sizes=[(image.height, image.width) for image in images])
    assert [len(ids) for ids in tiled_engine.replacements(images)] == counts["num_image_tokens"]
    # The numbers of rows of pixel_values.
    assert counts["num_image_patches"] == [3, 5, 3, 3, 4, 4, 5]
    assert [len(image["pixel_values"]) for image in tiled_engine.divide(images)] == counts["num_image_patches"]


def test_no_image_has_more_tokens_than_the_square_of_a_trial_run(tiled_engine):
    sizes = [(10_000, 10_000), *product(range(1, 100, 3), repeat=2), (1, 9_999), (9_999, 1), (3_000, 9_000)]
    counts = tiled_engine.processor._get_num_multimodal_tokens(image_sizes=sizes)["num_image_tokens"]
    assert max(counts) == counts[0] == 16 + 8 * 9


def test_the_inputs_of_an_image_in_tiles_do_not_depend_on_the_images_beside_it(tiled_engine):
    images = [*IMAGES, *EXTREME_IMAGES]
    for image, together in zip(images, tiled_engine.divide(images), strict=True):
        (alone,) = tiled_engine.divide([image])
        assert together.keys() == alone.keys() == {"pixel_values", "image_sizes"}
        assert together["image_sizes"].tolist() == [[image.height, image.width]]
        assert all(torch.equal(together[name], alone[name]) for name in together)


def test_images_in_tiles_are_encoded_in_one_pass(tiled_engine):
    sizes = []
    hook = tiled_engine.model.vision_tower.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    inputs = tiled_engine.divide([*IMAGES, *EXTREME_IMAGES])
    features = tiled_engine.encode(inputs)
    hook.remove()
    assert sizes == [sum(len(image["pixel_values"]) for image in inputs)]
    for image, found in zip(inputs, features, strict=True):
        torch.testing.assert_close(found, *tiled_engine.encode([image]), rtol=1e-4, atol=1e-4)


def test_the_processor_and_the_tokenizer_have_one_chat_template(any_engine):
    tokenizer = AutoTokenizer.from_pretrained(any_engine.folder)
    assert tokenizer.chat_template == any_engine.processor.chat_template


def test_generation_ends_at_the_tokens_that_the_folder_names(any_engine):
    values = json.loads((any_engine.folder / "generation_config.json").read_text())
    assert values["eos_token_id"] == any_engine.processor.tokenizer.eos_token_id
