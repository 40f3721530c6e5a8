"""The vision part of every checkpoint is loaded completely, without the layers after the features."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Aimv2Config,
    Aimv2Model,
    BlipConfig,
    BlipModel,
    ChineseCLIPConfig,
    ChineseCLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
    Dinov2Model,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MetaClip2Config,
    MetaClip2Model,
    Sam2HieraDetConfig,
    Sam2VisionConfig,
    Sam2VisionModel,
    Sam3VideoConfig,
    Sam3VisionModel,
    Siglip2Config,
    Siglip2Model,
    SiglipConfig,
    SiglipModel,
    SwinConfig,
    TimmBackboneConfig,
    UperNetConfig,
    UperNetForSemanticSegmentation,
    ViTConfig,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEModel,
    ViTModel,
)

from hawaii import HawaiiVisionConfig, HawaiiVisionModel
from hawaii.files.user_error import UserError
from hawaii.tests.tiny.models import fill
from hawaii.tests.tiny.teachers import (
    MAKE,
    OFFICIAL,
    SIZES,
    TEXT,
    assert_places_stay,
    assert_runs_alone,
    load_expert,
    official_features,
    random_images,
    save_expert,
    vision_part,
)
from hawaii.tests.tiny.training import save_image_processor
from hawaii.training.teachers.config import TeacherConfig
from hawaii.training.teachers.loading import load_teacher


LLAMA = {"model_type": "llama", **TEXT}
# Like CLIP, these models have a `vision_model`, which tests compare with the teacher.
PAIRS = {
    "siglip": (SiglipModel, SiglipConfig, {}),
    "metaclip_2": (MetaClip2Model, MetaClip2Config, {}),
    "chinese_clip": (ChineseCLIPModel, ChineseCLIPConfig, {}),
    "aimv2": (Aimv2Model, Aimv2Config, {}),
    "blip": (BlipModel, BlipConfig, {"initializer_range": 0.1}),
}


def make_pair(name):
    model_class, config_class, changes = PAIRS[name]
    return fill(model_class(config_class(vision_config={**SIZES, **changes}, text_config=TEXT)))


def save(model, folder, image_size=24):
    model.save_pretrained(folder)
    save_image_processor(folder, image_size)
    return str(folder)


def num_weights(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("is_vision_part", [False, True], ids=["complete", "vision_part"])
@pytest.mark.parametrize("name", OFFICIAL)
def test_features_equal_the_official_models_with_its_official_processor(tmp_path, name, is_vision_part):
    model = save_expert(name, tmp_path, is_vision_part)
    teacher = load_expert(name, tmp_path)
    images = random_images(3)
    torch.testing.assert_close(teacher(images), official_features(name, model, images), rtol=1e-5, atol=2e-5)
    assert num_weights(teacher.model) <= num_weights(vision_part(model))


@pytest.mark.parametrize("name", MAKE)
def test_every_cell_has_its_position(tmp_path, name):
    save_expert(name, tmp_path)
    assert_places_stay(load_expert(name, tmp_path))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MAKE)
def test_a_teacher_is_independent_of_autocast_and_never_waits(tmp_path, monkeypatch, name, dtype):
    save_expert(name, tmp_path)
    assert_runs_alone(load_expert(name, tmp_path, dtype=dtype), monkeypatch)


@pytest.mark.parametrize("name", MAKE)
def test_half_precision_is_close_to_full(tmp_path, name):
    save_expert(name, tmp_path)
    images = random_images(2)
    full, half = (load_expert(name, tmp_path, dtype=dtype)(images).float() for dtype in ("float32", "bfloat16"))
    assert (half - full).norm() < 0.03 * full.norm()
    assert not torch.equal(half, full)


@pytest.mark.parametrize("name", PAIRS)
def test_the_image_encoder_of_a_pair_is_loaded(tmp_path, name):
    model = make_pair(name)
    teacher = load_teacher(TeacherConfig(save(model, tmp_path)))
    images = random_images()
    with torch.no_grad():
        tokens = model.vision_model(teacher.preprocess(images)).last_hidden_state
    assert torch.equal(teacher(images), tokens[:, -36:].view(2, 6, 6, 16))
    assert not [key for key in teacher.model.state_dict() if key.startswith(("text", "logit", "head."))]


@pytest.mark.parametrize("layer", [-4, -3, -2, -1, 0, 2, 3])
@pytest.mark.parametrize("name", ["siglip", "metaclip_2", "chinese_clip"])
def test_layers_after_the_chosen_one_are_removed(tmp_path, name, layer):
    model = make_pair(name)
    teacher = load_teacher(TeacherConfig(save(model, tmp_path), layer=layer))
    images = random_images()
    with torch.no_grad():
        states = model.vision_model(teacher.preprocess(images), output_hidden_states=True).hidden_states
    assert torch.equal(teacher(images), states[layer][:, -36:].view(2, 6, 6, 16))
    assert len(teacher.model.encoder.layers) == layer % 4
    assert teacher.options == {}  # no hidden states are collected


def test_clips_last_layer_is_removed(tmp_path):
    model = save_expert("clip", tmp_path)
    teacher = load_expert("clip", tmp_path)
    assert len(teacher.model.encoder.layers) == 2
    layer = num_weights(model.vision_model.encoder.layers[0])
    assert num_weights(teacher.model) == num_weights(model.vision_model) - layer - 2 * 16  # and the norm after it
    with pytest.raises(UserError, match="has no layer -5: its layers are numbered from -4 to 3"):
        load_expert("clip", tmp_path, layer=-5)


def test_siglip_2_naflex_receives_patches(tmp_path):
    vision = {**SIZES, "num_patches": 36}
    model = fill(Siglip2Model(Siglip2Config(vision_config=vision, text_config=TEXT)))
    images = random_images(2, 40)
    for size, side in [(None, 6), (32, 8)]:
        teacher = load_teacher(TeacherConfig(save(model, tmp_path), image_size=size))
        assert teacher.grid == (side, side, 16)
        patches = teacher.preprocess(images)
        shapes, mask = torch.tensor([[side, side]] * 2), torch.ones(2, side * side, dtype=torch.long)
        with torch.no_grad():
            tokens = model.vision_model(patches, pixel_attention_mask=mask, spatial_shapes=shapes).last_hidden_state
        torch.testing.assert_close(teacher(images), tokens.view(2, side, side, 16))
    assert_places_stay(load_teacher(TeacherConfig(str(tmp_path), layer=-2)))
    with pytest.raises(UserError, match="its patches of 4 pixels do not cover 30 pixels"):
        load_teacher(TeacherConfig(str(tmp_path), image_size=30))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_siglip_2_naflex_is_independent_of_autocast_and_never_waits(tmp_path, monkeypatch, dtype):
    vision = {**SIZES, "num_patches": 36}
    model = fill(Siglip2Model(Siglip2Config(vision_config=vision, text_config=TEXT)))
    assert_runs_alone(load_teacher(TeacherConfig(save(model, tmp_path), dtype=dtype)), monkeypatch)


def test_the_encoder_of_a_vision_language_model_is_loaded(tmp_path):
    vision = {**SIZES, "model_type": "clip_vision_model"}
    model = fill(LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=LLAMA)))
    teacher = load_teacher(TeacherConfig(save(model, tmp_path), layer=-2))
    images = random_images()
    with torch.no_grad():
        states = model.model.vision_tower(teacher.preprocess(images), output_hidden_states=True).hidden_states
    assert torch.equal(teacher(images), states[-2][:, 1:].view(2, 6, 6, 16))


def test_the_encoder_of_depth_anything_is_loaded(tmp_path):
    backbone = Dinov2Config(**SIZES, out_indices=[1, 3], reshape_hidden_states=False)
    sizes = {"reassemble_hidden_size": 16, "neck_hidden_sizes": [8, 8], "reassemble_factors": [1, 1]}
    config = DepthAnythingConfig(backbone_config=backbone, patch_size=4, fusion_hidden_size=8, **sizes)
    model = fill(DepthAnythingForDepthEstimation(config))
    teacher = load_teacher(TeacherConfig(save(model, tmp_path)))
    images = random_images()
    with torch.no_grad():
        maps = model.backbone(teacher.preprocess(images)).feature_maps
    assert teacher.grid == (6, 6, 16)
    assert torch.equal(teacher(images), maps[-1][:, 1:].view(2, 6, 6, 16))
    assert num_weights(teacher.model) == num_weights(model.backbone)
    first = load_teacher(TeacherConfig(str(tmp_path), layer=0))
    assert torch.equal(first(images), maps[0][:, 1:].view(2, 6, 6, 16))


def test_the_backbone_under_a_head_returns_its_last_map(tmp_path):
    sizes = {"image_size": 24, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2]}
    swin = SwinConfig(**sizes, window_size=3, out_indices=[1, 2])
    config = UperNetConfig(backbone_config=swin, hidden_size=8, pool_scales=[1], use_auxiliary_head=False)
    model = fill(UperNetForSemanticSegmentation(config))
    teacher = load_teacher(TeacherConfig(save(model, tmp_path)))
    images = random_images()
    with torch.no_grad():
        official = model.backbone(teacher.preprocess(images)).feature_maps[-1]
    assert torch.equal(teacher(images), official.permute(0, 2, 3, 1))


def test_sam_2_returns_the_input_of_its_decoder(tmp_path):
    hiera = Sam2HieraDetConfig(
        hidden_size=8,
        num_attention_heads=1,
        image_size=[96, 96],
        blocks_per_stage=[1, 1, 1, 1],
        embed_dim_per_stage=[8, 16, 24, 32],
        num_attention_heads_per_stage=[1, 1, 1, 1],
        window_size_per_stage=[2, 2, 2, 2],
        global_attention_blocks=[],
    )
    sizes = {"backbone_channel_list": [32, 24, 16, 8], "backbone_feature_sizes": [[24, 24], [12, 12], [6, 6]]}
    model = fill(Sam2VisionModel(Sam2VisionConfig(backbone_config=hiera, fpn_hidden_size=12, **sizes)))
    teacher = load_teacher(TeacherConfig(save(model, tmp_path, 96), image_size=96))
    images = random_images(2, 96)
    with torch.no_grad():
        official = model(teacher.preprocess(images)).fpn_hidden_states[-1]
    assert teacher.grid == (6, 6, 12)
    assert torch.equal(teacher(images), official.permute(0, 2, 3, 1))


def test_sam_can_have_another_image_size(tmp_path):
    save_expert("sam", tmp_path)
    teacher = load_expert("sam", tmp_path, image_size=32)
    assert teacher.grid == (8, 8, 12)
    assert_places_stay(teacher)
    images = random_images()
    assert torch.equal(load_expert("sam", tmp_path, image_size=24)(images), load_expert("sam", tmp_path)(images))
    with pytest.raises(UserError, match="its patches of 4 pixels do not cover 30 pixels"):
        load_expert("sam", tmp_path, image_size=30)


def test_sam_3_is_loaded_from_the_published_checkpoint_for_videos(tmp_path):
    images, model = random_images(), save_expert("sam3", tmp_path)
    expected = load_expert("sam3", tmp_path)(images)
    weights = {f"detector_model.{name}": value for name, value in load_file(tmp_path / "model.safetensors").items()}
    save_file({**weights, "tracker_neck.x": torch.zeros(1)}, tmp_path / "model.safetensors", {"format": "pt"})
    Sam3VideoConfig(detector_config=model.config).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "sam3_video"
    assert torch.equal(load_expert("sam3", tmp_path)(images), expected)


def test_sam_3_has_no_more_of_its_neck_than_the_features_pass(tmp_path):
    model = save_expert("sam3", tmp_path).vision_encoder
    teacher, inner = load_expert("sam3", tmp_path), load_expert("sam3", tmp_path, layer=-1)
    used = num_weights(model.backbone)
    assert num_weights(teacher.model) == used + num_weights(model.neck.fpn_layers[2])
    assert num_weights(inner.model) == used
    images = random_images()
    with torch.no_grad():
        tokens = model(teacher.preprocess(images)).last_hidden_state
    assert torch.equal(inner(images).flatten(1, 2), tokens)


@pytest.mark.parametrize(("size", "side"), [(16, 4), (32, 8)])
def test_sam_3s_positions_are_those_of_the_image_size(tmp_path, size, side):
    model = save_expert("sam3", tmp_path)
    teacher = load_expert("sam3", tmp_path, image_size=size)
    assert teacher.grid == (side, side, 8)
    assert_places_stay(teacher)
    model.config.vision_config.backbone_config.image_size = size
    official = Sam3VisionModel(model.config.vision_config).eval()
    official.load_state_dict(model.vision_encoder.state_dict())
    images = random_images()
    with torch.no_grad():
        maps = official(teacher.preprocess(images)).fpn_hidden_states
    assert torch.equal(teacher(images), maps[2].permute(0, 2, 3, 1))
    with pytest.raises(UserError, match="its patches of 4 pixels do not cover 30 pixels"):
        load_expert("sam3", tmp_path, image_size=30)


def test_radio_needs_no_layer_scale_as_its_published_weights_have_none(tmp_path):
    images = random_images()
    save_expert("radio", tmp_path)
    expected = load_expert("radio", tmp_path)(images)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: value for name, value in weights.items() if "lambda1" not in name}
    assert len(kept) == len(weights) - 6
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    assert torch.equal(load_expert("radio", tmp_path)(images), expected)


def test_the_encoder_under_a_classifier_is_loaded(tmp_path):
    model = fill(ViTForImageClassification(ViTConfig(**SIZES)))
    teacher = load_teacher(TeacherConfig(save(model, tmp_path)))
    images = random_images()
    with torch.no_grad():
        tokens = model.vit(teacher.preprocess(images)).last_hidden_state
    assert torch.equal(teacher(images), tokens[:, 1:].view(2, 6, 6, 16))


def test_missing_weights_are_an_error(tmp_path):
    model = fill(Dinov2Model(Dinov2Config(**SIZES)))
    folder = save(model, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    lost = [key for key in weights if "layer.1." in key]
    save_file(
        {key: weights[key] for key in weights if key not in lost}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(
        UserError,
        match=rf"lacks {len(lost)} weights of its Dinov2Model .*a teacher cannot have random weights. Save it with",
    ):
        load_teacher(TeacherConfig(folder))


@pytest.mark.parametrize("name", MAKE)
def test_missing_weights_of_a_vision_part_are_an_error(tmp_path, name):
    save_expert(name, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    first = {"pix2struct": "encoder.encoder.layer.0.mlp", "dinov3": "layer.0.mlp", "radio": ".0.mlp"}
    marker, part = first.get(name, "layer_norm1.weight"), "" if name in first else "vision"
    lost = [key for key in weights if marker in key and part in key]
    del weights[lost[0]]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 weights of its \w+Model .* cannot have random weights"):
        load_expert(name, tmp_path)


def test_missing_weights_of_removed_layers_are_no_error(tmp_path):
    save_expert("clip", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    removed = ("vision_model.encoder.layers.2.", "vision_model.post_layernorm.")
    kept = {key: value for key, value in weights.items() if not key.startswith(removed)}
    assert len(kept) < len(weights)
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    assert load_expert("clip", tmp_path).grid == (6, 6, 16)
    with pytest.raises(UserError, match="lacks .* weights of its CLIPVisionModel"):
        load_expert("clip", tmp_path, layer=-1)


@pytest.mark.parametrize("layer", [-4, -2, 3])
def test_hawaiis_encoder_ends_with_the_chosen_layer(tmp_path, layer):
    model = fill(HawaiiVisionModel(HawaiiVisionConfig(**SIZES, num_teacher_adapters=2)))
    teacher = load_teacher(TeacherConfig(save(model, tmp_path), layer=layer))
    images = random_images()
    with torch.no_grad():
        states = model(teacher.preprocess(images), output_hidden_states=True).hidden_states
    assert torch.equal(teacher(images), states[layer][:, -36:].view(2, 6, 6, 16))
    assert len(teacher.model.layers) == layer % 4


def test_a_missing_pooler_is_no_error(tmp_path):
    model = fill(ViTModel(ViTConfig(**SIZES), add_pooling_layer=False))
    assert load_teacher(TeacherConfig(save(model, tmp_path))).grid == (6, 6, 16)


def test_pickles_are_not_read(tmp_path):
    model = save_expert("clip", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="no file named model.safetensors"):
        load_expert("clip", tmp_path)


def change(folder, **fields):
    """Changes fields of a folder's configuration; fields that are None are removed."""
    config = {**json.loads((folder / "config.json").read_text()), **fields}
    written = {name: value for name, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(written))


def test_weights_of_another_shape_are_an_error(tmp_path):
    folder = save(fill(Dinov2Model(Dinov2Config(**SIZES))), tmp_path)
    change(tmp_path, mlp_ratio=3)
    with pytest.raises(
        UserError, match=r"has 9 weights whose shapes differ .*fc1.bias: \[64\], not \[48\].: the weights or"
    ):
        load_teacher(TeacherConfig(folder))


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_truncated_file_is_one_sentence(tmp_path, share):
    folder = save(fill(Dinov2Model(Dinov2Config(**SIZES))), tmp_path)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: int(share * len(weights))])
    with pytest.raises(
        UserError, match=r"cannot load the teacher .*/model\.safetensors is damaged or truncated: Error"
    ):
        load_teacher(TeacherConfig(folder))


@pytest.mark.parametrize(
    ("kind", "problem"), [("dinov9", "model type `dinov9`"), (None, "Should have a `model_type` key")]
)
def test_an_unknown_configuration_is_one_sentence(tmp_path, kind, problem):
    folder = save(fill(Dinov2Model(Dinov2Config(**SIZES))), tmp_path)
    change(tmp_path, model_type=kind)
    with pytest.raises(UserError, match=f"does not know the configuration of teacher .*{problem}"):
        load_teacher(TeacherConfig(folder))


def test_code_that_comes_with_a_checkpoint_is_never_run(tmp_path, monkeypatch):
    folder = save(fill(Dinov2Model(Dinov2Config(**SIZES))), tmp_path)
    monkeypatch.setattr("builtins.input", lambda *args: "y")
    (tmp_path / "theirs.py").write_text("raise SystemExit('it runs')")
    change(tmp_path, model_type="theirs", auto_map={"AutoConfig": "theirs.Config", "AutoModel": "theirs.Model"})
    with pytest.raises(UserError, match="that comes with a checkpoint is never run: The repository .* custom co"):
        load_teacher(TeacherConfig(folder))
    change(tmp_path, model_type="dinov2", auto_map=None)
    processor = {"image_processor_type": "Theirs", "auto_map": {"AutoImageProcessor": "theirs.Processor"}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    with pytest.raises(UserError, match="The image processor of .* could not be read .*: .* custom code"):
        load_teacher(TeacherConfig(folder))


def test_a_model_that_shuffles_its_patches_is_an_error(tmp_path):
    folder = save(fill(ViTMAEModel(ViTMAEConfig(**SIZES, mask_ratio=0.0))), tmp_path)
    with pytest.raises(UserError, match="is a vit_mae, for which transformers .* has no model that maps images"):
        load_teacher(TeacherConfig(folder))


def test_a_timm_backbone_without_timm_is_one_sentence(tmp_path):
    TimmBackboneConfig(backbone="resnet18", out_indices=[-1]).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="transformers .* cannot load the teacher .*requires the timm library"):
        load_teacher(TeacherConfig(str(tmp_path)))


def test_no_warning_names_weights_outside_the_vision_part(tmp_path, caplog, capfd):
    save_expert("clip", tmp_path)
    capfd.readouterr()
    load_expert("clip", tmp_path)
    assert not [
        word for word in ("UNEXPECTED", "MISSING", "text_model") if word in caplog.text + capfd.readouterr().err
    ]


def test_a_text_model_is_an_error(tmp_path):
    folder = save(CLIPTextModel(CLIPTextConfig(**TEXT)), tmp_path)
    with pytest.raises(
        UserError, match="The teacher .* is a clip_text_model, for which .* has no model that maps images"
    ):
        load_teacher(TeacherConfig(folder))
