"""A student that starts from SigLIP or SigLIP 2 computes their features."""

import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Siglip2Config,
    Siglip2Model,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.models.siglip2.image_processing_pil_siglip2 import convert_image_to_patches

from hawaii.files.user_error import UserError
from hawaii.modeling_hawaii.conversion.clip import convert_clip
from hawaii.tests.tiny.models import draw_weights


# 18 pixels are four patches of 4 and a remainder, as 384 pixels of SigLIP so400m are 27 patches of 14.
VISION = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "patch_size": 4,
}
FIXED = {**VISION, "image_size": 18}
NAFLEX = {**VISION, "num_patches": 16}
TEXT = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 8}


def make_siglip(model_class=SiglipVisionModel, config=None):
    """A SigLIP whose biases and norms are not zeros and ones."""
    return draw_weights(model_class(config or SiglipVisionConfig(**FIXED)))


# In float64: in float32, two orders of the same sum differ by an amount that depends on the processor.
@pytest.fixture
def pixel_values():
    return torch.randn(3, 3, 18, 18, dtype=torch.float64)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize(("vision_feature_layer", "num_layers"), [(-2, 3), (-1, 4), (1, 1)])
@torch.no_grad()
def test_the_features_of_a_new_student_equal_siglips(
    tmp_path, pixel_values, implementation, vision_feature_layer, num_layers
):
    make_siglip().save_pretrained(tmp_path)
    siglip = SiglipVisionModel.from_pretrained(tmp_path, attn_implementation=implementation).double()
    student = convert_clip(tmp_path, vision_feature_layer=vision_feature_layer).model.double()
    student.set_attn_implementation(implementation)
    expected = siglip(pixel_values, output_hidden_states=True).hidden_states[vision_feature_layer]
    features = student(pixel_values, adapters=torch.tensor([0, -1, 2])).last_hidden_state
    assert features.shape == (3, 16, 128)
    assert len(student.layers) == num_layers
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-6)


@torch.no_grad()
def test_a_complete_siglip_converts_to_its_encoder_and_unused_tensors_are_listed(tmp_path, pixel_values):
    siglip = make_siglip(SiglipModel, SiglipConfig(vision_config=FIXED, text_config=TEXT))
    siglip.save_pretrained(tmp_path)
    student, unused = convert_clip(tmp_path)
    expected = siglip.double().vision_model(pixel_values, output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(student.double()(pixel_values).last_hidden_state, expected, rtol=0, atol=1e-6)
    modules = {name.removeprefix("vision_model.").split(".")[0] for name in unused}
    assert modules == {"text_model", "logit_scale", "logit_bias", "post_layernorm", "head", "encoder"}
    assert {name for name in unused if ".encoder." in name and name.startswith("vision")} == {
        name for name in siglip.state_dict() if name.startswith("vision_model.encoder.layers.3.")
    }


def naflex_inputs(pixel_values):
    """Square images as NaFlex's own processor splits them."""
    patches = [convert_image_to_patches(image.numpy(), 4) for image in pixel_values]
    return {
        "pixel_values": torch.from_numpy(np.stack(patches)),
        "pixel_attention_mask": torch.ones(len(patches), 16, dtype=torch.long),
        "spatial_shapes": torch.tensor([[4, 4]] * len(patches)),
    }


@pytest.mark.parametrize("is_complete", [False, True])
@torch.no_grad()
def test_features_of_squares_of_native_size_equal_those_of_a_naflex_siglip_2(tmp_path, is_complete):
    if is_complete:
        config = Siglip2Config(vision_config=NAFLEX, text_config=TEXT)
        siglip = make_siglip(Siglip2Model, config)
        encoder = siglip.vision_model
    else:
        encoder = siglip = make_siglip(Siglip2VisionModel, Siglip2VisionConfig(**NAFLEX))
    siglip.save_pretrained(tmp_path)
    student = convert_clip(tmp_path).model.double()
    assert student.config.image_size == 16
    pixel_values = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    expected = encoder.double()(**naflex_inputs(pixel_values), output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(student(pixel_values).last_hidden_state, expected, rtol=0, atol=1e-6)


def test_positions_that_do_not_form_a_square_are_refused(tmp_path):
    make_siglip(Siglip2VisionModel, Siglip2VisionConfig(**NAFLEX | {"num_patches": 15})).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="positions of 15 patches, which do not form a square"):
        convert_clip(tmp_path)


@pytest.mark.parametrize("shape", [(128, 45), (128,)])
def test_a_patch_embedding_of_another_shape_is_named(tmp_path, shape):
    make_siglip(Siglip2VisionModel, Siglip2VisionConfig(**NAFLEX)).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = next(name for name in tensors if name.endswith("patch_embedding.weight"))
    save_file(tensors | {name: torch.zeros(shape)}, tmp_path / "model.safetensors")
    message = re.escape(f"patch_embedding.weight {list(shape)} instead of [128, 3, 4, 4]")
    with pytest.raises(UserError, match=message):
        convert_clip(tmp_path)
