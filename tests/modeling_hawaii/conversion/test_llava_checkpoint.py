"""The configuration of a LLaVA is read, and unsupported LLaVAs are refused before their tensors are read."""

import json

import pytest

from hawaii.files.user_error import UserError
from hawaii.modeling_hawaii.conversion.llava_checkpoint import read_llava
from hawaii.tests.tiny.llava import SIGLIP, TEXT, make_llava, save_clip, save_original


@pytest.mark.parametrize(
    ("vision", "fields", "message"),
    [
        ({}, {"vision_feature_layer": [-2, -3]}, r"joins the features of layers \[-2, -3\]"),
        ({}, {"vision_feature_select_strategy": "full"}, "every patch and nothing else, which is 'default'"),
        (SIGLIP, {"vision_feature_select_strategy": "default"}, "every patch and nothing else, which is 'full'"),
    ],
    ids=["layers", "class token", "no class token"],
)
def test_a_llava_with_other_visual_features_is_refused(tmp_path, vision, fields, message):
    llava = make_llava(vision=vision)
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
        ({"mm_patch_merge_type": "spatial_unpad"}, "mm_patch_merge_type 'spatial_unpad'"),
        ({"image_aspect_ratio": "anyres"}, "image_aspect_ratio 'anyres'"),
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
def test_parts_of_unsupported_types_are_refused(tmp_path, fields, message):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava", **fields}))
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
