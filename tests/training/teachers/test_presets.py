"""The paper's experts and newer ones are presets, alone and in sets; a recipe can replace each of their fields."""

import re
from dataclasses import asdict, fields

import pytest
from PIL import Image
from transformers import RadioConfig

from hawaii.files.user_error import UserError
from hawaii.tests.tiny.teachers import OFFICIAL, make_processor
from hawaii.training.recipes.recipe import read_recipe
from hawaii.training.teachers.config import TeacherConfig
from hawaii.training.teachers.presets import PRESETS, TEACHER_SETS, expand_teachers


def names(value):
    return [config.name for config in expand_teachers(value)]


def test_the_presets_are_the_papers_experts_and_newer_ones():
    presets = {
        name: (config.checkpoint, config.image_size, config.resample, config.layer)
        for name in PRESETS
        for config in expand_teachers(name)
    }
    assert presets == {
        "clip": ("openai/clip-vit-large-patch14-336", 336, "bicubic", -2),
        "convnext": ("timm/convnext_xxlarge.clip_laion2b_soup", 768, "bicubic", None),
        "eva02": ("timm/eva02_large_patch14_448.mim_m38m_ft_in22k_in1k", 448, "bicubic", None),
        "pix2struct": ("google/pix2struct-large", 720, "bilinear", None),
        "sam": ("facebook/sam-vit-large", 1024, "bilinear", None),
        "siglip2": ("google/siglip2-so400m-patch16-384", 384, "bilinear", None),
        "dinov3": ("facebook/dinov3-vitl16-pretrain-lvd1689m", 768, "bilinear", None),
        "sam3": ("facebook/sam3", 1008, "bilinear", None),
        "radio": ("nvidia/C-RADIOv4-H", 768, "bicubic", None),
    }


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_defines_its_normalisation(name):
    config = expand_teachers(name)[0]
    assert config.name == name
    assert config.dtype == "bfloat16"
    means = {"clip": 0.48145466, "convnext": 0.48145466, "eva02": 0.48145466, "sam": 0.485, "siglip2": 0.5}
    means |= {"dinov3": 0.485, "sam3": 0.5, "radio": 0.0}
    assert (config.image_mean or [None])[0] == means.get(name)
    assert (config.image_std is None) == (name == "pix2struct")


def test_the_sets_are_the_papers_three_and_the_teachers_of_c_radio():
    assert names("hawaii") == ["clip", "convnext", "eva02"]
    assert names("hawaii_dagger") == ["clip", "convnext", "eva02", "pix2struct"]
    assert names("hawaii_double_dagger") == ["clip", "convnext", "eva02", "sam"]
    assert names("frontier") == ["siglip2", "dinov3", "sam3"]
    assert list(TEACHER_SETS) == ["hawaii", "hawaii_dagger", "hawaii_double_dagger", "frontier"]


@pytest.mark.parametrize("name", [name for name in OFFICIAL if name not in ("pix2struct", "radio")])
def test_the_normalisation_of_a_preset_is_that_of_its_official_processor(name):
    (config,) = expand_teachers(name)
    official = make_processor(name)
    assert (config.image_mean, config.image_std) == (list(official.image_mean), list(official.image_std))
    assert Image.Resampling[config.resample.upper()] == official.resample


def test_radio_normalises_by_itself():
    (config,) = expand_teachers("radio")
    assert (config.image_mean, config.image_std) == ([0.0] * 3, [1.0] * 3)
    assert RadioConfig().norm_mean == PRESETS["clip"]["image_mean"]


CHANGES = {
    "checkpoint": "/my/own",
    "name": "mine",
    "image_size": 32,
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": [0.1, 0.2, 0.3],
    "resample": "bilinear",
    "layer": 3,
    "dtype": "float32",
}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(("field", "value"), CHANGES.items(), ids=CHANGES)
def test_a_recipe_replaces_one_field_of_a_preset_and_no_other(preset, field, value):
    assert set(CHANGES) == {field.name for field in fields(TeacherConfig)}
    plain = asdict(expand_teachers(preset)[0])
    changed = asdict(expand_teachers([{"preset": preset, field: value}])[0])
    assert changed == {**plain, field: value}


def test_a_recipe_does_not_modify_the_presets():
    before = repr(PRESETS)
    expand_teachers([{"preset": "clip", "image_size": 32}])[0].image_mean.append(1.0)
    assert repr(PRESETS) == before


def test_a_list_may_contain_presets_sets_checkpoints_and_mappings():
    value = ["pix2struct", "hawaii", "google/vit-base", {"checkpoint": "x/y", "name": "z"}, {"preset": "sam"}]
    assert names(value) == ["pix2struct", "clip", "convnext", "eva02", "vit-base", "z", "sam"]
    assert names(None) == names([]) == []


def test_a_preset_takes_precedence_over_a_folder_of_the_same_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clip").mkdir()
    (tmp_path / "eva02").mkdir()
    (tmp_path / "mine").mkdir()
    checkpoints = [config.checkpoint for config in expand_teachers(["clip", "./eva02", "mine"])]
    assert checkpoints == [PRESETS["clip"]["checkpoint"], "./eva02", "mine"]


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (
            [{"preset": "smm"}],
            "There is no teacher preset 'smm': the presets are clip, .*, radio. Did you mean sam?",
        ),
        ([{"preset": 3}], "There is no teacher preset 3"),
        ([{"preset": ["clip"]}], r"There is no teacher preset \['clip'\]"),
        ([{"preset": "hawaii"}], "There is no teacher preset 'hawaii'"),
        ([{"preset": "clip", "image_sise": 3}], "A teacher has no field 'image_sise'"),
        ("convnxt", "There is no teacher 'convnxt': it is not a preset .clip, convnext.*Did you mean convnext?"),
        (["hawai"], "a set of presets .hawaii, hawaii_dagger.* hub id such as owner/name. Did you mean hawaii?"),
        ("", "The checkpoint of a teacher is ''"),
        ([3], "A teacher is 3; it must be a checkpoint or a mapping"),
        (["hawaii", "clip"], "Two teachers are called clip; set the name of one of them"),
        (["timm/model", "facebook/model"], "Two teachers are called model; set the name of one of them"),
    ],
)
def test_an_unknown_name_is_an_error_that_suggests_the_closest(value, problem):
    with pytest.raises(UserError, match=problem):
        expand_teachers(value)


@pytest.mark.parametrize(
    ("line", "override", "expected"),
    [
        ("teachers: hawaii", [], ["clip", "convnext", "eva02"]),
        ("teachers: hawaii", ["teachers=hawaii_dagger"], ["clip", "convnext", "eva02", "pix2struct"]),
        ("teachers: [{preset: convnext, image_size: 1024}, sam]", [], ["convnext", "sam"]),
        ("teachers: hawaii", ["stages.one.teachers=[clip]"], ["clip"]),
        ("", [], []),
    ],
)
def test_a_recipe_names_its_teachers(tmp_path, line, override, expected):
    path = tmp_path / "recipe.yaml"
    shared = "output_dir: x\ndata_path: y\nimage_folder: z\nllava: owner/llava\nuse_cpu: true"
    path.write_text(f"{shared}\n{line}\nstages: {{one: {{}}}}\n")
    assert [config.name for config in read_recipe(path, override).stages["one"].teachers] == expected


def test_timm_checkpoints_have_a_tag():
    checkpoints = [fields["checkpoint"] for fields in PRESETS.values()]
    assert all(re.fullmatch(r"timm/\w+\.\w+", name) for name in checkpoints if name.startswith("timm/"))
