"""Students of published checkpoints have the parameters of the originals except the parts that are not built."""

import pytest
import torch
from transformers import (
    CLIPVisionModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    Siglip2VisionModel,
    SiglipVisionModel,
)

from hawaii import HawaiiConfig, HawaiiForConditionalGeneration, HawaiiVisionModel
from hawaii.modeling_hawaii.conversion.clip import make_vision_config, vision_targets
from hawaii.modeling_hawaii.conversion.tensor_targets import build_empty


BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
# Published configurations, and millions of parameters of the student that ends at the second to last layer.
ENCODERS = {
    "openai/clip-vit-base-patch32": (CLIPVisionModel, {**BASE, "image_size": 224, "patch_size": 32}, 80.4),
    "openai/clip-vit-base-patch16": (CLIPVisionModel, {**BASE, "image_size": 224, "patch_size": 16}, 78.7),
    "openai/clip-vit-large-patch14": (CLIPVisionModel, {**LARGE, "image_size": 224, "patch_size": 14}, 290.6),
    "openai/clip-vit-large-patch14-336": (CLIPVisionModel, {**LARGE, "image_size": 336, "patch_size": 14}, 290.9),
    "google/siglip-base-patch16-224": (SiglipVisionModel, {**BASE, "image_size": 224, "patch_size": 16}, 78.7),
    "google/siglip-so400m-patch14-384": (SiglipVisionModel, {**SO400M, "image_size": 384, "patch_size": 14}, 397.7),
    "google/siglip2-so400m-patch16-naflex": (
        Siglip2VisionModel,
        {**SO400M, "num_patches": 256, "patch_size": 16},
        397.4,
    ),
}


def count(parameters):
    return sum(parameter.numel() for parameter in parameters)


@pytest.mark.parametrize("name", ENCODERS)
def test_a_student_is_the_encoder_without_last_layer_last_norm_and_pooling(name):
    model_class, fields, millions = ENCODERS[name]
    config = model_class.config_class(**fields)
    vision = make_vision_config(config, -2, {"num_teacher_adapters": 0, "num_general_adapters": 0})
    with torch.device("meta"):
        encoder, student = model_class(config), HawaiiVisionModel(vision)
    omitted = count(encoder.encoder.layers[-1].parameters()) + count(encoder.post_layernorm.parameters())
    omitted += count(encoder.head.parameters()) if hasattr(encoder, "head") else 0
    assert count(student.parameters()) == count(encoder.parameters()) - omitted
    assert count(student.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize("name", ENCODERS)
def test_every_tensor_of_the_remaining_layers_has_a_target(name):
    model_class, fields, _ = ENCODERS[name]
    config = model_class.config_class(**fields)
    vision = make_vision_config(config, -2, {"num_teacher_adapters": 0, "num_general_adapters": 0})
    with torch.device("meta"):
        encoder, student = model_class(config).state_dict(), HawaiiVisionModel(vision).state_dict()
    targets = vision_targets(config, vision)
    assert targets.keys() <= encoder.keys()
    filled = dict.fromkeys(student, 0)
    for theirs, target in targets.items():
        part = student[target.name][target.index]
        assert target.shape_of(tuple(encoder[theirs].shape)) == part.shape
        filled[target.name] += part.numel()
    assert filled == {name: tensor.numel() for name, tensor in student.items()}


def test_a_student_of_llava_7b_is_the_llava_without_the_encoders_last_layer_and_is_built_without_memory():
    config = LlavaConfig(text_config={"model_type": "llama", "vocab_size": 32064})  # other fields: llava-1.5-7b's
    vision = make_vision_config(config.vision_config, -2, {"num_teacher_adapters": 0, "num_general_adapters": 0})
    student = build_empty(
        HawaiiForConditionalGeneration,
        HawaiiConfig(vision_config=vision, text_config=config.text_config),
        torch.float16,
    )
    with torch.device("meta"):
        llava = LlavaForConditionalGeneration(config)
    encoder = llava.model.vision_tower
    omitted = count(encoder.encoder.layers[-1].parameters()) + count(encoder.post_layernorm.parameters())
    assert count(student.parameters()) == count(llava.parameters()) - omitted == 7_050_828_800
    assert all(parameter.is_meta and parameter.dtype == torch.float16 for parameter in student.parameters())
    assert not any(buffer.is_meta for buffer in student.buffers())


# The language models of llava-hf/llava-v1.6-vicuna-7b-hf, llava-v1.6-mistral-7b-hf, llama3-llava-next-8b-hf and
# llava-next-72b-hf, and the parameters of the students.
MISTRAL = {"model_type": "mistral", "intermediate_size": 14336, "num_key_value_heads": 8}
LLAVA_NEXT = {
    "vicuna 7b": ({"model_type": "llama", "vocab_size": 32064}, 7_050_832_896),
    "mistral 7b": ({**MISTRAL, "vocab_size": 32064}, 7_554_149_376),
    "llama 3 8b": ({**MISTRAL, "model_type": "llama", "vocab_size": 128320}, 8_342_678_528),
    "qwen 72b": (
        {
            "model_type": "qwen2",
            "vocab_size": 152064,
            "hidden_size": 8192,
            "intermediate_size": 24576,
            "num_hidden_layers": 80,
            "num_attention_heads": 64,
            "num_key_value_heads": 64,
        },
        72_654_351_360,
    ),
}


@pytest.mark.parametrize("name", LLAVA_NEXT)
def test_a_student_of_a_llava_next_is_the_llava_next_without_the_encoders_last_layer(name):
    text, num_parameters = LLAVA_NEXT[name]
    config = LlavaNextConfig(text_config=text)
    vision = make_vision_config(config.vision_config, -2, {"num_teacher_adapters": 0, "num_general_adapters": 0})
    fields = {"text_config": config.text_config, "image_grid_pinpoints": config.image_grid_pinpoints}
    student = build_empty(HawaiiForConditionalGeneration, HawaiiConfig(vision_config=vision, **fields), torch.bfloat16)
    with torch.device("meta"):
        llava = LlavaNextForConditionalGeneration(config)
    encoder = llava.model.vision_tower
    omitted = count(encoder.encoder.layers[-1].parameters()) + count(encoder.post_layernorm.parameters())
    assert count(student.parameters()) == count(llava.parameters()) - omitted == num_parameters
    assert student.model.image_newline.shape == (config.text_config.hidden_size,)
    assert student.config.image_seq_length == 576
