"""Defaults, refused values and lossless saving of the configurations."""

import json

import pytest
from transformers import CLIPVisionConfig

from hawaii import HawaiiConfig, HawaiiVisionConfig
from hawaii.tests.tiny.models import VISION, make_config


TEXT = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 50}


def test_the_default_encoder_is_clip_large_336_with_23_layers_and_6_adapters_of_rank_16():
    config = HawaiiVisionConfig()
    # The fields of openai/clip-vit-large-patch14-336 that are not transformers' defaults for CLIP.
    clip = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    shared = [name for name in config.to_dict() if name in clip.to_dict() and name not in ("model_type",)]
    differing = {name for name in shared if getattr(config, name) != getattr(clip, name)}
    assert differing == {"num_hidden_layers"}
    assert config.num_hidden_layers == 23
    assert config.num_patches == 24 * 24
    assert (config.num_teacher_adapters, config.num_general_adapters) == (3, 3)
    assert (config.lora_rank, config.lora_alpha, config.router_hidden_size) == (16, 16, 64)
    assert (config.adapter_placement, config.router_gradient) == ("ffn", "straight_through")
    assert (config.has_class_token, config.has_pre_layer_norm, config.has_patch_bias) == (True, True, False)
    assert (config.num_prefix_tokens, config.lora_bias) == (1, False)


def test_the_default_language_model_is_vicuna_7b_and_images_have_576_tokens():
    config = HawaiiConfig()
    assert config.text_config.model_type == "llama"
    assert (config.text_config.hidden_size, config.text_config.num_hidden_layers) == (4096, 32)
    assert config.image_seq_length == 576
    assert config.image_token_id == config.image_token_index == 32000


def test_setting_one_name_of_the_image_token_sets_the_other():
    config = make_config()
    config.image_token_id = 7
    assert config.image_token_index == 7


def test_a_vision_configuration_is_unchanged_by_json():
    config = HawaiiVisionConfig(
        **VISION,
        adapter_placement="linear",
        router_gradient="switch",
        num_teacher_adapters=4,
        num_general_adapters=1,
        has_class_token=False,
        has_pre_layer_norm=False,
        has_patch_bias=True,
        lora_bias=True,
    )
    again = HawaiiVisionConfig(**json.loads(config.to_json_string(use_diff=False)))
    assert again.to_dict() == config.to_dict()


def test_a_router_of_one_layer_is_unchanged_by_saving(tmp_path):
    make_config(vision={"router_hidden_size": None}).save_pretrained(tmp_path)
    assert HawaiiConfig.from_pretrained(tmp_path).vision_config.router_hidden_size is None


@pytest.mark.parametrize(
    "text",
    [
        {"model_type": "llama", **TEXT, "rms_norm_eps": 1e-4},
        {"model_type": "qwen2", **TEXT, "tie_word_embeddings": True},
        {"model_type": "gemma3_text", **TEXT, "head_dim": 16, "sliding_window": 8},
        {"model_type": "gpt2", "n_embd": 32, "n_head": 4, "vocab_size": 50},
    ],
    ids=lambda text: text["model_type"],
)
def test_any_language_model_is_unchanged_by_saving(tmp_path, text):
    config = HawaiiConfig(vision_config=VISION, text_config=text, image_token_index=49)
    config.save_pretrained(tmp_path)
    again = HawaiiConfig.from_pretrained(tmp_path)
    assert type(again.text_config) is type(config.text_config)
    assert again.text_config.to_dict() == config.text_config.to_dict()
    assert again.vision_config.to_dict() == config.vision_config.to_dict()
    assert {name: getattr(again.text_config, name) for name in text} == text
    assert again.image_token_index == 49
    assert again.tie_word_embeddings == config.text_config.tie_word_embeddings


def test_parts_may_be_configuration_objects():
    parts = make_config()
    config = HawaiiConfig(vision_config=parts.vision_config, text_config=parts.text_config)
    assert config.vision_config is parts.vision_config
    assert config.text_config is parts.text_config


def test_fields_for_engines_select_the_last_layer_without_the_class_token():
    config = make_config()
    assert config.vision_feature_layer == -1
    assert config.vision_feature_select_strategy == "default"
    assert config.image_seq_length == 16


def test_fields_for_engines_select_all_tokens_if_there_is_no_class_token():
    config = make_config(vision={"has_class_token": False})
    assert config.vision_feature_select_strategy == "full"
    assert config.image_seq_length == config.vision_config.num_patches == 16
    assert config.vision_config.num_prefix_tokens == 0


def test_only_complete_patches_are_counted():
    config = HawaiiVisionConfig(image_size=384, patch_size=14)  # SigLIP so400m
    assert config.num_patches == 27 * 27


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": 12}, r"image_size 12 is less than one patch of patch_size 14"),
        ({"hidden_size": 1000}, r"hidden_size 1000 is not a multiple of num_attention_heads 16"),
        ({"adapter_placement": "attention"}, r"adapter_placement is 'attention'; it must be one of ffn, linear"),
        ({"router_gradient": "ste"}, r"router_gradient is 'ste'; it must be one of straight_through, none, switch"),
    ],
    ids=["image_size", "hidden_size", "adapter_placement", "router_gradient"],
)
def test_an_invalid_value_is_named_with_the_valid_ones(fields, message):
    with pytest.raises(ValueError, match=message):
        HawaiiVisionConfig(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"tie_word_embeddings": True},
        {"vision_feature_layer": -2},
        {"vision_feature_select_strategy": "full"},
        {"image_seq_length": 7},
    ],
    ids=str,
)
def test_a_derived_field_that_contradicts_the_parts_is_refused(fields):
    with pytest.raises(ValueError, match=f"{next(iter(fields))} follows from the encoder and the language model"):
        HawaiiConfig(**fields)
