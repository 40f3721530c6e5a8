"""The configuration of a LLaVA is read, and unsupported LLaVAs are refused before their tensors are read."""

import json

import pytest

from hawaii.files.user_error import UserError
from hawaii.modeling_hawaii.conversion.llava_checkpoint import read_llava
from hawaii.tests.tiny.llava import SIGLIP, TEXT, make_llava, make_llava_next, save_clip, save_original


@pytest.mark.parametrize(
    ("vision", "fields", "message"),
    [
        ({}, {"vision_feature_layer": [-2, -3]}, r"joins the features of layers \[-2, -3\]"),
        ({}, {"vision_feature_select_strategy": "full"}, "every patch and nothing else, which is 'default'"),
        (SIGLIP, {"vision_feature_select_strategy": "default"}, "every patch and nothing else, which is 'full'"),
    ],
    ids=["layers", "class token", "no class token"],
)
@pytest.mark.parametrize("make", [make_llava, make_llava_next])
def test_a_llava_with_other_visual_features_is_refused(tmp_path, vision, fields, message, make):
    llava = make(vision=vision)
    llava.config.update(fields)
    llava.config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=message):
        read_llava(tmp_path, None)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mm_projector_type": "linear"}, "has mm_projector_type 'linear'; .* that has 'mlp2x_gelu'"),
        ({"mm_vision_select_feature": "cls_patch"}, "mm_vision_select_feature 'cls_patch'"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end True"),
        (
            {"mm_patch_merge_type": "spatial_unpad"},
            "mm_patch_merge_type 'spatial_unpad' with image_aspect_ratio 'pad'; .* 'spatial_unpad' with 'anyres'",
        ),
        ({"image_aspect_ratio": "anyres"}, "mm_patch_merge_type 'flat' with image_aspect_ratio 'anyres'"),
        ({"image_aspect_ratio": "highres"}, "image_aspect_ratio 'highres'; .* 'flat' with 'pad' or 'square'"),
        ({"mm_vision_select_layer": None}, "has no mm_vision_select_layer"),
        ({"mm_vision_tower": None}, "None is no CLIP .* Pass its folder or Hub id"),
        (
            {"mm_vision_tower": "/there/is/none"},
            "/there/is/none is no CLIP .* Pass its folder or Hub id",
        ),
        ({"model_type": "llava_mpt"}, "is a 'llava_mpt' checkpoint"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_unsupported_llava_in_its_own_form_is_refused(tmp_path, fields, message):
    folder = save_original(make_llava(), tmp_path / "llava", save_clip(tmp_path / "clip"))
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | fields))
    with pytest.raises(UserError, match=message):
        read_llava(folder, None)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"image_aspect_ratio": "anyres_max_9"},
            "image_aspect_ratio 'anyres_max_9'; .* 'spatial_unpad' with 'anyres'",
        ),
        ({"image_aspect_ratio": "pad"}, "mm_patch_merge_type 'spatial_unpad' with image_aspect_ratio 'pad'"),
        ({"mm_patch_merge_type": "spatial"}, "mm_patch_merge_type 'spatial' with image_aspect_ratio 'anyres'"),
        ({"mm_patch_merge_type": ["spatial_unpad"]}, r"mm_patch_merge_type \['spatial_unpad'\]"),
        ({"mm_patch_merge_type": "flat"}, "mm_patch_merge_type 'flat' with image_aspect_ratio 'anyres'"),
        (
            {"image_grid_pinpoints": "(1x1),...,(6x6)"},
            r"image_grid_pinpoints '\(1x1\),\.\.\.,\(6x6\)'; .* lists the width",
        ),
        ({"image_grid_pinpoints": None}, r"image_grid_pinpoints None; .* such as \[\[336, 672\]"),
        ({"image_grid_pinpoints": [[32, 16, 8]]}, r"image_grid_pinpoints \[\[32, 16, 8\]\]; "),
        ({"mm_projector_type": "linear"}, "has mm_projector_type 'linear'; .* that has 'mlp2x_gelu'"),
    ],
)
def test_an_unsupported_llava_next_in_its_own_form_is_refused(tmp_path, fields, message):
    folder = save_original(make_llava_next(), tmp_path / "llava", save_clip(tmp_path / "clip"), **fields)
    with pytest.raises(UserError, match=message):
        read_llava(folder, None)


def test_another_encoder_for_a_llava_that_contains_one_is_refused(tmp_path):
    make_llava().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="contains its encoder: leave vision_tower out"):
        read_llava(tmp_path, vision_tower="openai/clip-vit-base-patch32")


@pytest.mark.parametrize("name", ["/there/is/none", "empty"])
def test_a_folder_without_a_checkpoint_is_named(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=f"{name} is no LLaVA: no folder of that name contains a config.json"):
        read_llava(str(tmp_path / name), None)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vision_config": {"model_type": "pixtral"}}, "The encoder of .* is a 'pixtral'"),
        ({"vision_config": {"model_type": "of_tomorrow"}}, "The encoder of .* is a 'of_tomorrow'"),
        ({"text_config": {"model_type": "of_tomorrow"}}, "The language model of .* is a 'of_tomorrow'"),
        ({"text_config": {"model_type": "t5"}}, "The language model of .* is a 't5'"),
    ],
)
@pytest.mark.parametrize("model_type", ["llava", "llava_next"])
def test_parts_of_unsupported_types_are_refused(tmp_path, fields, message, model_type):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, **fields}))
    with pytest.raises(UserError, match=message):
        read_llava(tmp_path, None)


def test_missing_fields_default_to_llava_7b(tmp_path):
    # The fields of llava-hf/llava-1.5-7b-hf.
    text = {"model_type": "llama", "vocab_size": 32064, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
    values = {"model_type": "llava", "text_config": text, "image_token_index": 32000}
    (tmp_path / "config.json").write_text(json.dumps(values))
    source = read_llava(tmp_path, None)
    assert (source.text_config.hidden_size, source.text_config.num_hidden_layers) == (4096, 32)
    assert (source.vision_config.hidden_size, source.vision_config.image_size) == (1024, 336)
    assert (source.vision_feature_layer, source.projector_hidden_act) == (-2, "gelu")
    assert (source.image_token_index, source.vision_tower) == (32000, None)
    assert source.image_grid_pinpoints is None


def test_the_fields_of_each_published_llava_next_are_read(tmp_path):
    # The fields of llava-hf/llava-v1.6-mistral-7b-hf, llama3-llava-next-8b-hf and llava-next-72b-hf.
    texts = {
        32000: {"model_type": "mistral", "vocab_size": 32064, "intermediate_size": 14336},
        128256: {"model_type": "llama", "vocab_size": 128320, "rope_theta": 5e5, "num_key_value_heads": 8},
        151646: {"model_type": "qwen2", "vocab_size": 152064, "hidden_size": 8192, "num_hidden_layers": 80},
    }
    for image_token_index, text in texts.items():
        values = {
            "model_type": "llava_next",
            "text_config": text,
            "image_token_index": image_token_index,
            "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
            "use_image_newline_parameter": True,
        }
        (tmp_path / "config.json").write_text(json.dumps(values))
        source = read_llava(tmp_path, None)
        assert (source.text_config.model_type, source.text_config.vocab_size) == (
            text["model_type"],
            text["vocab_size"],
        )
        assert source.image_token_index == image_token_index
        assert source.image_grid_pinpoints == values["image_grid_pinpoints"]
        assert (source.vision_config.image_size, source.vision_feature_layer) == (336, -2)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_damaged_configuration_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        read_llava(tmp_path, None)


def test_another_model_type_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(TEXT))
    with pytest.raises(UserError, match="is a 'llama' checkpoint; a student starts from a 'llava'"):
        read_llava(tmp_path, None)


@pytest.mark.parametrize("is_original", [False, True])
def test_a_configuration_that_transformers_refuses_is_named(tmp_path, is_original):
    text = {"model_type": "llama", "hidden_size": "wide"}
    values = {"model_type": "llava", "text_config": text}
    if is_original:
        folder = save_original(make_llava(), tmp_path / "llava", save_clip(tmp_path / "clip"))
        values = json.loads((folder / "config.json").read_text()) | {"hidden_size": "wide"}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=f"The configuration of {tmp_path} cannot be read: "):
        read_llava(tmp_path, None)
