"""The class token and its attention equal the library's; one forward pass and one layer of eager attention suffice."""

import pytest
import torch
from transformers import (
    AutoModel,
    BeitConfig,
    CLIPVisionConfig,
    ConvNextConfig,
    DeiTConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    DINOv3ViTConfig,
    SiglipVisionConfig,
    SwinConfig,
    ViTConfig,
)
from transformers.integrations import sdpa_attention

from hawaii.files.user_error import UserError
from hawaii.tests.tiny.models import draw_weights
from hawaii.tests.tiny.teachers import (
    FIELDS,
    IMAGE_SIZE,
    PATCH,
    SIDE,
    SIZES,
    forbid_waiting,
    load_expert,
    make_teacher,
    random_images,
    save_expert,
)
from hawaii.tests.tiny.training import make_teacher_models
from hawaii.training.baselines.class_token_teacher import ClassTokenGrid, ClassTokenTeacher
from hawaii.training.teachers import teacher as teacher_module


# The configuration, its fields, and the number of tokens before the patches.
TRANSFORMERS = {
    "clip": (CLIPVisionConfig, {}, 1),
    "vit": (ViTConfig, {}, 1),
    "deit": (DeiTConfig, {}, 2),
    "beit": (BeitConfig, {"use_relative_position_bias": True}, 1),
    "dinov2": (Dinov2Config, {}, 1),
    "dinov2_with_registers": (Dinov2WithRegistersConfig, {"num_register_tokens": 3}, 4),
    "dinov3": (DINOv3ViTConfig, {"num_register_tokens": 2}, 3),
}


def make(config, layer=None, **kwargs):
    model = draw_weights(AutoModel.from_config(config))
    return make_teacher(model, layer=layer, **kwargs)


def expected_of(teacher, images, layer, num_prefix):
    """Outputs of the library with eager attention in every layer."""
    config = teacher.model.config.__class__.from_dict(teacher.model.config.to_dict())
    model = AutoModel.from_config(config, attn_implementation="eager")
    model.load_state_dict(teacher.model.state_dict())
    with torch.no_grad():
        outputs = model.eval()(teacher.preprocess(images), output_hidden_states=True, output_attentions=True)
    tokens = outputs.last_hidden_state if layer is None else outputs.hidden_states[layer]
    attention = outputs.attentions[-1 if layer is None else layer]  # of two negative numbers, both count from the end
    return tokens[:, num_prefix:].unflatten(1, (SIDE, SIDE)), tokens[:, 0], attention[:, :, 0, num_prefix:].mean(dim=1)


@pytest.mark.parametrize("layer", [None, -1, -2])
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_the_class_token_and_its_attention_equal_the_librarys(name, layer):
    config_class, fields, num_prefix = TRANSFORMERS[name]
    teacher = make(config_class(**SIZES, **fields), layer)
    images = random_images(3)
    expected = expected_of(teacher, images, layer, num_prefix)
    features = ClassTokenTeacher(teacher)(images)
    torch.testing.assert_close(tuple(features), expected)
    assert features.class_attention.shape == (3, SIDE * SIDE)
    assert 0 < features.class_attention.sum(dim=-1).min() and features.class_attention.sum(dim=-1).max() < 1


def test_the_class_token_of_a_loaded_clip_is_from_the_second_last_layer(tmp_path):
    model = save_expert("clip", tmp_path / "clip").vision_model
    images = random_images(2)
    teacher = load_expert("clip", tmp_path / "clip")
    assert FIELDS["clip"] == {"layer": -2}
    model.set_attn_implementation("eager")
    with torch.no_grad():
        outputs = model(teacher.preprocess(images), output_hidden_states=True, output_attentions=True)
    features = ClassTokenTeacher(teacher)(images)
    torch.testing.assert_close(features.class_token, outputs.hidden_states[-2][:, 0])
    torch.testing.assert_close(features.class_attention, outputs.attentions[-2][:, :, 0, 1:].mean(dim=1))


def test_the_grid_equals_the_teachers_and_has_another_type():
    teacher = make(ViTConfig(**SIZES))
    wrapped = ClassTokenTeacher(teacher)
    assert wrapped.grid == teacher.grid == (SIDE, SIDE, 16)
    assert isinstance(wrapped.grid, ClassTokenGrid) and not isinstance(teacher.grid, ClassTokenGrid)
    assert (wrapped.name, wrapped.image_size, wrapped.model) == (teacher.name, teacher.image_size, teacher.model)


def test_the_model_runs_once_with_eager_attention_in_one_layer(monkeypatch):
    teacher = ClassTokenTeacher(make(ViTConfig(**SIZES)))
    runs, fast = [], []
    teacher.model.register_forward_pre_hook(lambda *args: runs.append(1))
    sdpa = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        sdpa_attention.torch.nn.functional,
        "scaled_dot_product_attention",
        lambda *args, **kwargs: fast.append(1) or sdpa(*args, **kwargs),
    )
    teacher(random_images(2))
    assert (len(runs), len(fast)) == (1, SIZES["num_hidden_layers"] - 1)
    assert teacher.model.config._attn_implementation == "sdpa"


def test_images_in_several_forward_passes_keep_their_order(monkeypatch):
    teacher, images = ClassTokenTeacher(make(ViTConfig(**SIZES))), random_images(5)
    together = teacher(images)
    monkeypatch.setattr(teacher_module, "PIXELS_AT_ONCE", 2 * IMAGE_SIZE**2)
    torch.testing.assert_close(tuple(teacher(images)), tuple(together))


def test_a_call_keeps_no_tensors_needs_no_gradient_and_does_not_synchronize(monkeypatch):
    teacher = ClassTokenTeacher(make(ViTConfig(**SIZES)))
    images = random_images(2)
    with monkeypatch.context() as patch, torch.enable_grad():
        forbid_waiting(patch)
        features = teacher(images)
    assert not any(part.requires_grad for part in features)
    assert not teacher._tokens and not teacher._attentions


def test_a_teacher_can_be_built_on_the_meta_device():
    with torch.device("meta"):
        model = AutoModel.from_config(ViTConfig(**SIZES))
    assert ClassTokenTeacher(make_teacher(model)).grid == (SIDE, SIDE, 16)


def count_hooks(teacher):
    return sum(len(module._forward_hooks) for module in teacher.model.modules())


WITHOUT = {
    "siglip": SiglipVisionConfig(**SIZES),  # no class token
    "swin": SwinConfig(embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=3, image_size=24, patch_size=4),
    "convnext": ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, patch_size=PATCH),
}


@pytest.mark.parametrize("name", WITHOUT)
def test_teachers_without_a_class_token_are_refused_and_not_modified(name):
    layer = -1 if name == "swin" else None
    teacher = make(WITHOUT[name], layer)
    images = random_images(2)
    before, hooks = teacher(images), count_hooks(teacher)
    with pytest.raises(UserError, match=r"The class token of teacher expert \(.*\) and its attention are unknown"):
        ClassTokenTeacher(teacher)
    assert torch.equal(teacher(images), before)
    assert count_hooks(teacher) == hooks


@pytest.mark.parametrize("layer", [0, -4])
def test_the_input_of_the_first_layer_has_no_attention(layer):
    with pytest.raises(UserError, match="its attention are unknown"):
        ClassTokenTeacher(make(ViTConfig(**SIZES), layer))


@pytest.mark.parametrize("name", ["pix2struct", "sam"])
def test_pix2struct_and_sam_are_refused(tmp_path, name):
    save_expert(name, tmp_path / name)
    with pytest.raises(UserError, match="its attention are unknown"):
        ClassTokenTeacher(load_expert(name, tmp_path / name))


def test_one_of_the_tiny_teachers_has_a_class_token():
    models = make_teacher_models().items()
    found = {name: make_teacher(model, 16).class_token_attention() is not None for name, model in models}
    assert found == {"vit": True, "convnext": False}
