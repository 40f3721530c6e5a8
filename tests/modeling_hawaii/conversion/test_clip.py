"""A student that starts from CLIP computes exactly CLIP's features."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    ViTConfig,
    ViTModel,
)

from hawaii.files.user_error import UserError
from hawaii.modeling_hawaii.conversion.clip import convert_clip
from hawaii.tests.tiny.models import draw_weights


# Wide enough that matrix products use the same kernels as at full size. The last two fields differ from the defaults
# of CLIP and of this package.
VISION = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
    "projection_dim": 8,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-3,
}
TEXT = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 8}


def make_clip(clip_class=CLIPVisionModel, config=None):
    """A CLIP whose biases and norms are not zeros and ones."""
    return draw_weights(clip_class(config or CLIPVisionConfig(**VISION)))


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    make_clip().save_pretrained(folder)
    return folder


@pytest.fixture
def pixel_values():
    return torch.randn(3, 3, 16, 16)


def copy_with_tensors(folder, target, change):
    """Copies a checkpoint and applies `change` to its dictionary of tensors."""
    (target / "config.json").write_text((folder / "config.json").read_text())
    save_file(change(load_file(folder / "model.safetensors")), target / "model.safetensors", {"format": "pt"})
    return target


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("adapters", [None, [0, 1, 2], [-1, 2, -1]])
def test_the_features_of_a_new_student_are_bitwise_equal_to_clips(clip_folder, pixel_values, implementation, adapters):
    clip = CLIPVisionModel.from_pretrained(clip_folder, attn_implementation=implementation).eval()
    student = convert_clip(clip_folder).model
    student.set_attn_implementation(implementation)
    with torch.no_grad():
        expected = clip(pixel_values, output_hidden_states=True).hidden_states[-2]
        features = student(pixel_values, adapters=None if adapters is None else torch.tensor(adapters))
    assert torch.equal(features.last_hidden_state, expected)


@pytest.mark.parametrize(("vision_feature_layer", "num_layers"), [(-2, 3), (-1, 4), (-4, 1), (2, 2)])
def test_layers_after_the_feature_layer_are_not_built(clip_folder, pixel_values, vision_feature_layer, num_layers):
    student = convert_clip(clip_folder, vision_feature_layer=vision_feature_layer).model
    assert len(student.layers) == student.config.num_hidden_layers == num_layers
    with torch.no_grad():
        clip = CLIPVisionModel.from_pretrained(clip_folder).eval()
        expected = clip(pixel_values, output_hidden_states=True).hidden_states[vision_feature_layer]
        assert torch.equal(student(pixel_values).last_hidden_state, expected)


def test_a_layer_that_does_not_exist_is_refused(clip_folder):
    with pytest.raises(UserError, match="vision_feature_layer is 5, but .* has hidden states -5 to 4"):
        convert_clip(clip_folder, vision_feature_layer=5)


@pytest.mark.parametrize("clip_class", [CLIPModel, CLIPVisionModelWithProjection])
def test_a_complete_clip_converts_to_its_encoder(tmp_path, pixel_values, clip_class):
    config = CLIPConfig(vision_config=VISION, text_config=TEXT, projection_dim=8) if clip_class is CLIPModel else None
    clip = make_clip(clip_class, config)
    clip.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = clip.vision_model(pixel_values, output_hidden_states=True).hidden_states[-2]
        assert torch.equal(convert_clip(tmp_path).model(pixel_values).last_hidden_state, expected)


def test_checkpoints_of_older_transformers_convert_the_same(clip_folder, tmp_path):
    def with_older_names(tensors):
        tensors["embeddings.position_ids"] = torch.arange(17)[None]
        return {f"vision_model.{name}": tensor for name, tensor in tensors.items()}

    older = convert_clip(copy_with_tensors(clip_folder, tmp_path, with_older_names)).model.state_dict()
    newer = convert_clip(clip_folder).model.state_dict()
    assert all(
        torch.equal(older[name], newer[name]) for name in newer if "adapters.down" not in name and "rout" not in name
    )


def test_the_caller_chooses_the_adapters(clip_folder):
    student = convert_clip(clip_folder, num_teacher_adapters=4, num_general_adapters=0, lora_rank=2).model
    assert student.layers[0].feed_forward.adapters.down.shape == (4, 2, 128)
    assert student.config.lora_rank == 2


@pytest.mark.parametrize("field", ["patch_size", "num_hidden_layers", "num_teacher_adaptors"])
def test_fields_that_clip_determines_are_refused(clip_folder, field):
    with pytest.raises(UserError, match=f"{field} is not an adapter field"):
        convert_clip(clip_folder, **{field: 8})


def test_the_student_has_the_requested_type(clip_folder):
    student = convert_clip(clip_folder, dtype=torch.bfloat16).model
    assert {parameter.dtype for parameter in student.parameters()} == {torch.bfloat16}


def test_a_missing_tensor_is_named(clip_folder, tmp_path):
    def without_one(tensors):
        del tensors["encoder.layers.1.mlp.fc1.bias"]
        return tensors

    with pytest.raises(UserError, match=r"lacks: encoder\.layers\.1\.mlp\.fc1\.bias"):
        convert_clip(copy_with_tensors(clip_folder, tmp_path, without_one))


def test_an_unknown_tensor_is_named(clip_folder, tmp_path):
    def with_another(tensors):
        return tensors | {"encoder.layers.0.mlp.router.weight": torch.zeros(3, 128)}

    with pytest.raises(UserError, match=r"that a CLIP does not have: encoder\.layers\.0\.mlp\.router\.weight"):
        convert_clip(copy_with_tensors(clip_folder, tmp_path, with_another))


def test_another_model_type_is_refused(tmp_path):
    config = ViTConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16)
    ViTModel(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is a 'vit' checkpoint"):
        convert_clip(tmp_path)


@pytest.mark.parametrize("name", ["/there/is/none", "empty"])
def test_a_folder_without_a_checkpoint_is_named(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=f"{name} is no CLIP checkpoint: no folder of that name"):
        convert_clip(str(tmp_path / name))


def test_an_invalid_adapter_field_is_an_error_for_the_user(clip_folder):
    with pytest.raises(UserError, match="adapter_placement is 'attention'; it must be one of ffn, linear"):
        convert_clip(clip_folder, adapter_placement="attention")
