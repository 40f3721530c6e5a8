"""Teachers are loaded from checkpoints, which define what the recipe omits."""

import pytest
import torch
from transformers import (
    AutoConfig,
    CLIPVisionConfig,
    ConvNextConfig,
    ConvNextModel,
    LlavaConfig,
    Pix2StructConfig,
    ResNetConfig,
    ResNetModel,
    Sam3Config,
    SamConfig,
    SamHQVisionConfig,
    Siglip2VisionConfig,
    ViTConfig,
    ViTModel,
)

from hawaii.files.user_error import UserError
from hawaii.tests.tiny.models import fill
from hawaii.tests.tiny.teachers import FIELDS, MAKE, load_expert, random_images, save_expert
from hawaii.tests.tiny.training import save_image_processor
from hawaii.training.counting.architectures import read_architecture
from hawaii.training.teachers.clip_like import ClipLikeTeacher
from hawaii.training.teachers.config import TeacherConfig
from hawaii.training.teachers.loading import TEACHER_KINDS, find_kind, load_teacher, outline_teacher
from hawaii.training.teachers.naflex import NaflexTeacher
from hawaii.training.teachers.pix2struct import Pix2StructTeacher
from hawaii.training.teachers.presets import PRESETS, expand_teachers
from hawaii.training.teachers.sam import Sam3Teacher, SamTeacher
from hawaii.training.teachers.timm_models import TimmArchitecture, TimmTeacher
from hawaii.training.teachers.transformers_models import TransformersTeacher


def make_vit():
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=4
    )
    return fill(ViTModel(config, add_pooling_layer=False))


def save(model, folder, image_size=16, **kwargs):
    model.save_pretrained(folder)
    save_image_processor(folder, image_size, **kwargs)
    return str(folder)


def num_weights(teacher):
    return sum(parameter.numel() for parameter in teacher.model.parameters())


KINDS = {
    TimmTeacher: TimmArchitecture(),
    NaflexTeacher: Siglip2VisionConfig(),
    ClipLikeTeacher: LlavaConfig(),  # its vision encoder is a CLIP
    Pix2StructTeacher: Pix2StructConfig(),
    SamTeacher: SamHQVisionConfig(),
    Sam3Teacher: Sam3Config(),
    TransformersTeacher: ViTConfig(),
}


@pytest.mark.parametrize(("kind", "architecture"), KINDS.items())
def test_the_vision_part_of_an_architecture_decides_the_kind_of_teacher(kind, architecture):
    assert find_kind(architecture) is kind


def test_every_kind_is_tested_and_the_last_matches_everything():
    assert list(KINDS) == TEACHER_KINDS
    assert all(TEACHER_KINDS[-1].matches(architecture) for architecture in KINDS.values())


def test_the_weights_of_the_checkpoint_are_loaded(tmp_path):
    config = ConvNextConfig(hidden_sizes=[8, 12], depths=[1, 1], num_stages=2, patch_size=2)
    model = fill(ConvNextModel(config))
    teacher = load_teacher(TeacherConfig(save(model, tmp_path)))
    images = random_images()
    features = model(teacher.preprocess(images)).last_hidden_state.permute(0, 2, 3, 1)
    torch.testing.assert_close(teacher(images), features, rtol=0, atol=0)


def test_the_image_size_comes_from_the_processor_if_the_configuration_has_none(tmp_path):
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    teacher = load_teacher(TeacherConfig(save(fill(ResNetModel(config)), tmp_path, image_size=32)))
    assert teacher.image_size == 32
    assert teacher.grid == (4, 4, 16)


def test_the_recipe_takes_precedence_over_the_checkpoint(tmp_path):
    folder = save(make_vit(), tmp_path)
    fields = {"checkpoint": folder, "name": "eye", "image_size": 32, "image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    config = TeacherConfig.parse({**fields, "layer": -2, "dtype": "bfloat16", "resample": "bilinear"})
    teacher = load_teacher(config)
    assert (teacher.name, teacher.image_size, teacher.layer, teacher.resample) == ("eye", 32, -2, "bilinear")
    assert teacher.grid == (8, 8, 16)  # position embeddings are interpolated
    assert teacher(random_images(1, 32)).dtype == torch.bfloat16
    white = torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
    torch.testing.assert_close(teacher.preprocess(white).max().item(), 1.0)


@pytest.mark.parametrize("name", MAKE)
def test_a_preset_can_have_another_image_size_and_dtype(tmp_path, name):
    save_expert(name, tmp_path)
    changes = {"checkpoint": str(tmp_path), "image_size": 32, "dtype": "float16"}
    teacher = load_teacher(expand_teachers([{"preset": name, **changes}])[0])
    assert teacher.grid[:2] == (8, 8)
    assert teacher(random_images()).dtype == torch.float16


@pytest.mark.parametrize("name", MAKE)
def test_a_preset_can_have_another_checkpoint(tmp_path, name):
    save_expert(name, tmp_path)
    changes = {"checkpoint": str(tmp_path), "image_size": 24}
    teacher = load_teacher(expand_teachers([{"preset": name, **changes}])[0])
    assert teacher.name == name
    assert teacher.grid == load_expert(name, tmp_path).grid
    assert teacher(random_images()).dtype == torch.bfloat16


def test_a_missing_checkpoint_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"There is no teacher .*nowhere: name a folder or a hub id"):
        load_teacher(TeacherConfig(str(tmp_path / "nowhere")))


@pytest.mark.parametrize("is_vision_part", [False, True], ids=["complete", "vision_part"])
@pytest.mark.parametrize("name", MAKE)
def test_an_outline_has_the_grid_and_the_parameters_of_the_teacher(tmp_path, name, is_vision_part):
    save_expert(name, tmp_path, is_vision_part)
    config = TeacherConfig.parse({"checkpoint": str(tmp_path), **FIELDS[name], "dtype": "bfloat16"})
    architecture = AutoConfig.from_pretrained(tmp_path)
    before = architecture.to_dict()
    outline, teacher = outline_teacher(config, architecture), load_teacher(config)
    assert (outline.name, outline.grid, outline.image_size, outline.dtype) == (
        teacher.name,
        teacher.grid,
        teacher.image_size,
        teacher.dtype,
    )
    assert num_weights(outline) == num_weights(teacher)
    assert outline.device.type == "meta"
    assert architecture.to_dict() == before


@pytest.mark.parametrize(
    ("name", "grid", "millions"),
    [("clip", (24, 24, 1024), 291), ("pix2struct", (45, 45, 1536), 513), ("sam", (64, 64, 256), 308)],
)
def test_a_preset_has_the_grid_of_the_paper(name, grid, millions):
    config = expand_teachers(name)[0]
    teacher = outline_teacher(config, read_architecture(config.checkpoint))
    assert teacher.grid == grid
    assert teacher.image_size == PRESETS[name]["image_size"]
    assert round(num_weights(teacher) / 1e6) == millions


def test_an_outline_has_the_native_image_size_by_default():
    assert outline_teacher(TeacherConfig("x/y"), CLIPVisionConfig(image_size=64, patch_size=16)).grid == (4, 4, 768)
    sam = SamConfig(vision_config={"image_size": 64, "num_hidden_layers": 1, "global_attn_indexes": [0]})
    assert outline_teacher(TeacherConfig("x/y"), sam).grid == (4, 4, 256)
