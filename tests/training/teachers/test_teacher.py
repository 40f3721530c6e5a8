"""A teacher is frozen and independent, and its features are a grid with every cell at its position, or an error."""

import pytest
import torch
from transformers import (
    ConvNextConfig,
    ConvNextModel,
    DeiTConfig,
    DeiTModel,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ConvNextConfig,
    DINOv3ConvNextModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    InternVLVisionConfig,
    InternVLVisionModel,
    PixioConfig,
    PixioModel,
    PvtConfig,
    PvtModel,
    RadioConfig,
    RadioModel,
    SamVisionConfig,
    SamVisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    SwinConfig,
    SwinModel,
    VideoMAEConfig,
    VideoMAEModel,
    ViTConfig,
    VitDetConfig,
    VitDetModel,
    ViTModel,
)

from hawaii.files.user_error import UserError
from hawaii.tests.tiny import teachers as tiny
from hawaii.tests.tiny.models import fill
from hawaii.tests.tiny.teachers import assert_runs_alone, forbid_waiting, random_images, where_it_changes
from hawaii.training.teachers import teacher as teacher_module


SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 16,
    "patch_size": 4,
}


def make_vit():
    return fill(ViTModel(ViTConfig(**SIZES), add_pooling_layer=False))


def make_convnext():
    return fill(ConvNextModel(ConvNextConfig(hidden_sizes=[8, 12], depths=[1, 1], num_stages=2, patch_size=2)))


def make_registers():
    return fill(Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**SIZES, num_register_tokens=3)))


def make_dinov3():
    return fill(DINOv3ViTModel(DINOv3ViTConfig(**SIZES, num_register_tokens=2)))


def make_dinov3_convnext():
    return fill(DINOv3ConvNextModel(DINOv3ConvNextConfig(hidden_sizes=[8, 12], depths=[1, 1], image_size=16)))


def make_radio():
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4}
    model = RadioModel(RadioConfig(**sizes, image_size=16, max_img_size=32, num_cls_tokens=3, num_registers=4))
    torch.nn.init.normal_(model.embeddings.cls_register_token)
    return fill(model)


def make_pixio():
    return fill(PixioModel(PixioConfig(**SIZES, n_cls_tokens=5)))


def make_deit():
    return fill(DeiTModel(DeiTConfig(**SIZES)))


def make_siglip():
    return fill(SiglipVisionModel(SiglipVisionConfig(**SIZES)))


def make_internvl():
    sizes = {**SIZES, "image_size": [16, 16], "patch_size": [4, 4]}
    return fill(InternVLVisionModel(InternVLVisionConfig(**sizes)))


def make_pvt():
    sizes = {"patch_sizes": [4, 2], "strides": [4, 2], "hidden_sizes": [8, 16], "depths": [1, 1]}
    heads = {"num_attention_heads": [1, 2], "mlp_ratios": [2, 2], "sequence_reduction_ratios": [2, 1]}
    return PvtModel(PvtConfig(image_size=16, num_encoder_blocks=2, **sizes, **heads))


def make_swin():
    config = SwinConfig(image_size=16, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4)
    return fill(SwinModel(config))


def make_sam(hidden_size=16):
    sizes = {**SIZES, "hidden_size": hidden_size, "initializer_range": 0.1}
    config = SamVisionConfig(**sizes, output_channels=8, window_size=2, mlp_dim=32, global_attn_indexes=[0])
    return fill(SamVisionModel(config))


def make_vitdet():
    sizes = {name: SIZES[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "image_size")}
    return fill(VitDetModel(VitDetConfig(**sizes, pretrain_image_size=16, patch_size=4)))


def make_teacher(model, image_size=16, **kwargs):
    return tiny.make_teacher(model, image_size, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.4], **kwargs)


GRIDS = {
    "vit": (make_vit, None, (4, 4, 16)),
    "vit_layer": (make_vit, -2, (4, 4, 16)),
    "registers": (make_registers, None, (4, 4, 16)),
    "dinov3": (make_dinov3, None, (4, 4, 16)),
    "dinov3_layer": (make_dinov3, 1, (4, 4, 16)),
    "dinov3_convnext": (make_dinov3_convnext, None, (2, 2, 12)),
    "radio": (make_radio, None, (4, 4, 16)),
    "pixio": (make_pixio, None, (4, 4, 16)),
    "deit": (make_deit, None, (4, 4, 16)),
    "siglip": (make_siglip, None, (4, 4, 16)),
    "internvl": (make_internvl, None, (4, 4, 16)),
    "convnext": (make_convnext, None, (4, 4, 12)),
    "convnext_layer": (make_convnext, -2, (8, 8, 8)),
    "swin": (make_swin, -1, (4, 4, 16)),
    "sam": (make_sam, None, (4, 4, 8)),
    "sam_layer": (make_sam, -1, (4, 4, 16)),
    "vitdet": (make_vitdet, None, (4, 4, 16)),
}


@pytest.mark.parametrize(("make", "layer", "shape"), GRIDS.values(), ids=GRIDS)
def test_features_are_a_grid(make, layer, shape):
    teacher = make_teacher(make(), layer=layer)
    assert teacher.grid == shape
    assert teacher(random_images(3, 16)).shape == (3, *shape)


@pytest.mark.parametrize(
    ("make", "num_others"),
    [(make_registers, 4), (make_dinov3, 3), (make_radio, 7), (make_pixio, 5), (make_deit, 2), (make_siglip, 0)],
    ids=["registers", "dinov3", "radio", "pixio", "deit", "siglip"],
)
def test_class_tokens_and_registers_are_removed(make, num_others):
    model = make()
    teacher = make_teacher(model)
    images = random_images(2, 16)
    with torch.no_grad():
        tokens = model(teacher.preprocess(images)).last_hidden_state
    assert tokens.shape[1] == num_others + 16
    assert torch.equal(teacher(images), tokens[:, num_others:].view(2, 4, 4, 16))


def test_radios_features_are_those_of_its_own_output():
    model = make_radio()
    teacher = make_teacher(model)
    images = random_images(2, 16)
    with torch.no_grad():
        official = model(teacher.preprocess(images)).features
    assert torch.equal(teacher(images).flatten(1, 2), official)


def test_each_cell_is_the_token_of_its_patch():
    model = make_vit()
    teacher = make_teacher(model)
    images = random_images(2, 16)
    with torch.no_grad():
        tokens = model(teacher.preprocess(images)).last_hidden_state
    grid = teacher(images)
    for row in range(4):
        for column in range(4):
            assert torch.equal(grid[:, row, column], tokens[:, 1 + 4 * row + column])


def test_layer_selects_from_the_hidden_states():
    model = make_vit()
    teacher = make_teacher(model, layer=-2)
    images = random_images(2, 16)
    with torch.no_grad():
        tokens = model(teacher.preprocess(images), output_hidden_states=True).hidden_states[1]
    assert torch.equal(teacher(images), tokens[:, 1:].view(2, 4, 4, 16))


@pytest.mark.parametrize("make", [make_convnext, make_sam, make_vitdet])
def test_maps_are_channels_first(make):
    model = make()
    teacher = make_teacher(model)
    images = random_images(2, 16)
    with torch.no_grad():
        features = model(teacher.preprocess(images)).last_hidden_state
    assert torch.equal(teacher(images)[0, 1, 2], features[0, :, 1, 2])


def test_a_map_with_channels_last_is_recognised_by_its_shape():
    model = make_sam()
    teacher = make_teacher(model, layer=-1)
    images = random_images(2, 16)
    with torch.no_grad():
        state = model(teacher.preprocess(images), output_hidden_states=True).hidden_states[-1]
    assert state.shape == (2, 4, 4, 16)
    assert torch.equal(teacher(images), state)


@pytest.mark.parametrize(
    ("make", "layer"),
    [(make_vit, None), (make_convnext, None), (make_swin, -1), (make_radio, None), (make_dinov3, None)],
    ids=["vit", "convnext", "swin", "radio", "dinov3"],
)
def test_the_cell_of_a_changed_patch_changes_most(make, layer):
    teacher = make_teacher(make(), layer=layer)
    images = random_images(1, 16).repeat(16, 1, 1, 1)
    for place, image in enumerate(images):
        row, column = divmod(place, 4)
        image[:, row * 4 : (row + 1) * 4, column * 4 : (column + 1) * 4] ^= 255
    assert where_it_changes(teacher(images)) == list(range(16))


def test_the_grid_depends_on_the_image_size():
    assert make_teacher(make_vit(), 32).grid == (8, 8, 16)  # position embeddings are interpolated
    assert make_teacher(make_radio(), 32).grid == (8, 8, 16)
    assert make_teacher(make_convnext(), 40).grid == (10, 10, 12)


def test_a_large_batch_is_processed_in_parts(monkeypatch):
    model = make_vit()
    teacher, images = make_teacher(model), random_images(7, 16)
    together, batch_sizes = teacher(images), []
    model.register_forward_pre_hook(lambda module, inputs: batch_sizes.append(len(inputs[0])))
    monkeypatch.setattr(teacher_module, "PIXELS_AT_ONCE", 3 * 16 * 16)
    torch.testing.assert_close(teacher(images), together)
    assert batch_sizes == [3, 3, 1]


def test_a_teacher_is_frozen():
    teacher = make_teacher(make_vit().train())
    assert not teacher.model.training
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    assert not isinstance(teacher, torch.nn.Module)


def test_features_are_computed_without_gradient():
    teacher, enabled = make_teacher(make_vit()), []
    teacher.model.register_forward_hook(lambda *args: enabled.append(torch.is_grad_enabled()))
    assert not teacher(random_images(2, 16)).requires_grad
    assert enabled == [False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("make", "layer"), [entry[:2] for entry in GRIDS.values()], ids=GRIDS)
def test_a_teacher_is_independent_of_autocast_and_never_waits(make, layer, dtype, monkeypatch):
    assert_runs_alone(make_teacher(make().to(dtype), layer=layer), monkeypatch)


def test_forbid_waiting_detects_waiting(monkeypatch):
    forbid_waiting(monkeypatch)
    for wait in (
        lambda tensor: tensor.item(),
        bool,
        int,
        float,
        lambda tensor: [0, 1][tensor],
        lambda tensor: tensor.cpu(),
    ):
        with pytest.raises(AssertionError, match="waits for the device"):
            wait(torch.ones((), dtype=torch.long))


@pytest.mark.parametrize(("make", "layer", "shape"), GRIDS.values(), ids=GRIDS)
def test_the_grid_is_known_without_weights(make, layer, shape):
    teacher = make_teacher(make().to("meta"), layer=layer)
    assert teacher.grid == shape
    assert teacher(random_images(3, 40).to("meta")).shape == (3, *shape)


@pytest.mark.parametrize(
    ("make", "image_size", "problem"),
    [
        (make_swin, 16, "returns 16 tokens, which is neither 8 x 8"),
        (make_siglip, 18, "patches of 4 pixels do not cover 18 pixels"),
        (make_pvt, 16, "returns 5 tokens, and its configuration has no patch size"),
    ],
    ids=["swin", "not_a_multiple", "no_patch_size"],
)
def test_an_unknown_grid_is_an_error_with_a_hint(make, image_size, problem):
    with pytest.raises(
        UserError, match=f"The grid of teacher expert .* is unknown: its? {problem}.*Set its image_size"
    ):
        make_teacher(make(), image_size)


@pytest.mark.parametrize("image_size", [18, 16])
def test_patches_need_not_cover_an_image_of_the_native_size(image_size):
    # As SigLIP so400m's 27 patches of 14 pixels in 384; 378 pixels are the same grid.
    model = fill(SiglipVisionModel(SiglipVisionConfig(**{**SIZES, "image_size": 18})))
    teacher = make_teacher(model, image_size)
    assert teacher.grid == (4, 4, 16)
    images = random_images(2, image_size)
    with torch.no_grad():
        tokens = model(teacher.preprocess(images)).last_hidden_state
    assert torch.equal(teacher(images), tokens.view(2, 4, 4, 16))


def test_an_error_of_the_model_is_one_sentence():
    sizes = {"num_frames": 2, "tubelet_size": 2, **SIZES}
    with pytest.raises(UserError, match=r"Teacher expert \(VideoMAEModel\) cannot process 16 x 16 pixels: not enough"):
        make_teacher(VideoMAEModel(VideoMAEConfig(**sizes)))


def test_a_map_that_is_not_square_is_an_error():
    model = make_convnext()
    model.register_forward_hook(
        lambda module, arguments, output: type(output)(last_hidden_state=torch.zeros(1, 5, 4, 3))
    )
    with pytest.raises(UserError, match="is unknown: it returns 5 x 4 x 3, not a map of channels x side x side"):
        make_teacher(model)


def test_a_missing_layer_is_an_error():
    with pytest.raises(UserError, match="Teacher expert has no layer 3: its layers are numbered from -3 to 2"):
        make_teacher(make_vit(), layer=3)
