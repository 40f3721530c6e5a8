"""Presets of the paper's experts and of newer ones, and the configurations of the teachers that a recipe names."""

import copy
import difflib
from pathlib import Path

from ...files.user_error import UserError
from .config import TeacherConfig


# CLIP's preprocessing.
CLIP_IMAGES = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": "bicubic",
}

IMAGENET_IMAGES = {
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "resample": "bilinear",
}
# From -1 to 1.
CENTERED_IMAGES = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": "bilinear"}

# Fields of [`TeacherConfig`] by name: the paper's five, then those of 2025 and 2026.
PRESETS = {
    "clip": {
        "checkpoint": "openai/clip-vit-large-patch14-336",
        "image_size": 336,
        **CLIP_IMAGES,
        "layer": -2,
        "dtype": "bfloat16",
    },
    # With its tag, because timm's default weights for this architecture are others.
    "convnext": {
        "checkpoint": "timm/convnext_xxlarge.clip_laion2b_soup",
        "image_size": 768,
        **CLIP_IMAGES,
        "dtype": "bfloat16",
    },
    "eva02": {
        "checkpoint": "timm/eva02_large_patch14_448.mim_m38m_ft_in22k_in1k",
        "image_size": 448,
        **CLIP_IMAGES,
        "dtype": "bfloat16",
    },
    # 45 x 45 patches, as its official processor makes of a square with at most 2048 patches.
    "pix2struct": {
        "checkpoint": "google/pix2struct-large",
        "image_size": 720,
        "resample": "bilinear",
        "dtype": "bfloat16",
    },
    "sam": {
        "checkpoint": "facebook/sam-vit-large",
        "image_size": 1024,
        **IMAGENET_IMAGES,
        "dtype": "bfloat16",
    },
    # The grids of these are multiples of LLaVA's 24 x 24 tokens, so that no feature is interpolated. SigLIP 2 has 24 x
    # 24 patches with patches of 16 pixels only.
    "siglip2": {
        "checkpoint": "google/siglip2-so400m-patch16-384",
        "image_size": 384,
        **CENTERED_IMAGES,
        "dtype": "bfloat16",
    },
    "dinov3": {
        "checkpoint": "facebook/dinov3-vitl16-pretrain-lvd1689m",
        "image_size": 768,
        **IMAGENET_IMAGES,
        "dtype": "bfloat16",
    },
    "sam3": {
        "checkpoint": "facebook/sam3",
        "image_size": 1008,
        **CENTERED_IMAGES,
        "dtype": "bfloat16",
    },
    # The model itself normalises values from zero to one.
    "radio": {
        "checkpoint": "nvidia/C-RADIOv4-H",
        "image_size": 768,
        "image_mean": [0.0] * 3,
        "image_std": [1.0] * 3,
        "resample": "bicubic",
        "dtype": "bfloat16",
    },
}

# HAWAII, HAWAII dagger and HAWAII double dagger (section 3.1), and the model families from which C-RADIOv4 was
# distilled.
TEACHER_SETS = {
    "hawaii": ("clip", "convnext", "eva02"),
    "hawaii_dagger": ("clip", "convnext", "eva02", "pix2struct"),
    "hawaii_double_dagger": ("clip", "convnext", "eva02", "sam"),
    "frontier": ("siglip2", "dinov3", "sam3"),
}


def _closest(name, known: list[str]) -> str:
    close = difflib.get_close_matches(str(name), known, n=1)
    return f" Did you mean {close[0]}?" if close else ""


def _preset(changes: dict) -> TeacherConfig:
    changes = dict(changes)
    preset = changes.pop("preset")
    if not isinstance(preset, str) or preset not in PRESETS:
        suggestion = _closest(preset, list(PRESETS))
        raise UserError(f"There is no teacher preset {preset!r}: the presets are {', '.join(PRESETS)}.{suggestion}")
    return TeacherConfig.parse({"name": preset, **copy.deepcopy(PRESETS[preset]), **changes})


def _expand(item) -> list[TeacherConfig]:
    if isinstance(item, dict) and "preset" in item:
        return [_preset(item)]
    if not isinstance(item, str):
        return [TeacherConfig.parse(item)]
    if item in TEACHER_SETS:
        return [_preset({"preset": preset}) for preset in TEACHER_SETS[item]]
    if item in PRESETS:
        return [_preset({"preset": item})]
    if item and "/" not in item and not Path(item).is_dir():
        known = [*PRESETS, *TEACHER_SETS]
        raise UserError(
            f"There is no teacher {item!r}: it is not a preset ({', '.join(PRESETS)}), a set of presets "
            f"({', '.join(TEACHER_SETS)}), a folder or a hub id such as owner/name.{_closest(item, known)}"
        )
    return [TeacherConfig.parse(item)]


def expand_teachers(value: str | list | None) -> list[TeacherConfig]:
    """
    Returns the configurations of the teachers that a recipe names.

    Args:
        value (`str` or `list`, *optional*):
            A name, or a list of names and mappings. A name is that of a set (`hawaii`), of a preset (`clip`), or a
            checkpoint: a folder or a hub id. A preset takes precedence over a folder of the same name, which is
            written `./clip`. A mapping has the fields of [`TeacherConfig`], or a `preset` and the fields that replace
            its own: `{preset: convnext, image_size: 1024}`.

    Raises:
        UserError: there is no such preset or set, a field is invalid, or two teachers have the same name, so that
            their losses could not be distinguished.
    """
    items = [] if value is None else value if isinstance(value, list) else [value]
    configs = [config for item in items for config in _expand(item)]
    names = [config.name for config in configs]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"Two teachers are called {name}; set the name of one of them.")
    return configs
