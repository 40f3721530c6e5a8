"""From what a recipe says of its teachers to the teachers."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from transformers import AutoImageProcessor, BaseImageProcessor, PretrainedConfig, PreTrainedModel
from transformers.utils import is_torchvision_available

from ...files.sources import check_source
from ...files.user_error import UserError
from .config import TeacherConfig
from .errors import TeacherError, in_one_sentence
from .naflex import NaflexTeacher
from .pix2struct import Pix2StructTeacher
from .teacher import Teacher, own_image_size
from .timm_models import TimmTeacher, is_timm, load_timm_model, outline_timm_model
from .transformers_models import load_vision_model, outline_vision_model


# Pillow's numbers of the filters that teachers can use.
FILTERS = {2: "bilinear", 3: "bicubic"}
# Kinds of models that are shown something else than images.
NAFLEX, PIX2STRUCT = "siglip2_vision_model", "pix2struct_vision_model"
PIX2STRUCT_PATCHES = 2048


def _shown_image_size(processor, checkpoint: str) -> int:
    is_cropped = getattr(processor, "do_center_crop", False)
    size = dict(getattr(processor, "crop_size" if is_cropped else "size", None) or {})
    sides = [size[name] for name in ("height", "shortest_edge", "longest_edge") if size.get(name)]
    if not sides:
        raise UserError(f"The image processor of teacher {checkpoint} names no size: give it an image_size.")
    return sides[0]


def _own_normalization(processor, checkpoint: str) -> tuple[list[float], list[float]]:
    """
    The mean and the standard deviation of a teacher's own image processor, of values from zero to one.

    Raises:
        ValueError: it makes something else of an image than scaling and normalising it, or does not say by what.
    """
    # Not every image processor has all of these.
    factor = getattr(processor, "rescale_factor", 1 / 255) if getattr(processor, "do_rescale", True) else 1
    if not math.isclose(factor, 1 / 255, rel_tol=1e-4):
        problem = f"multiplies pixels by {factor:.6g}, where teachers are shown values from zero to one"
    elif getattr(processor, "do_flip_channel_order", False):
        problem = "turns the channels round, where teachers are shown red, green and blue"
    elif not getattr(processor, "do_normalize", True):
        return [0.0] * 3, [1.0] * 3
    elif None in (getattr(processor, "image_mean", None), getattr(processor, "image_std", None)):
        problem = "does not say by what it normalises"
    else:
        return processor.image_mean, processor.image_std
    raise UserError(f"The image processor of teacher {checkpoint} {problem}: give it image_mean and image_std.")


def _known_resample(resample: str | None, own, checkpoint: str) -> str:
    """A filter that teachers can use, or an error that names what a checkpoint's `own` configuration calls it."""
    if resample not in FILTERS.values():
        raise UserError(
            f"The image processor of teacher {checkpoint} resizes by {own!r}: give it a resample, which is one of "
            f"{', '.join(FILTERS.values())}."
        )
    return resample


def _load_processor(checkpoint: str):
    """A teacher's own image processor, or its fields alone where its class needs a torchvision that is not there."""
    problem = (
        f"The teacher {checkpoint} has no image processor that could be read: give it image_size, image_mean, "
        "image_std and resample"
    )
    try:
        with in_one_sentence(problem):
            return AutoImageProcessor.from_pretrained(checkpoint, trust_remote_code=False)
    except OSError as error:
        raise UserError(f"{problem}: {error}") from error
    except TeacherError:
        if is_torchvision_available():
            raise
        fields, _ = BaseImageProcessor.get_image_processor_dict(checkpoint)
        name = str(fields.get("image_processor_type")).removesuffix("Fast")
        if not hasattr(transformers, name):
            raise
        return SimpleNamespace(**fields)


def _made_for(model: PreTrainedModel) -> int | None:
    """Side of the images that a model was made for, where it knows."""
    config = model.config
    if config.model_type == NAFLEX:
        return math.isqrt(config.num_patches) * config.patch_size
    if config.model_type == PIX2STRUCT:
        # As many patches as its processor makes of a square.
        return math.isqrt(PIX2STRUCT_PATCHES) * math.isqrt(config.patch_embed_hidden_size // 3)
    return own_image_size(config)


def _complete(config: TeacherConfig, model: PreTrainedModel) -> TeacherConfig:
    """Adds what a recipe does not say: a transformers model's own configuration and image processor do."""
    config = replace(config, image_size=config.image_size or _made_for(model))
    if model.config.model_type == PIX2STRUCT:
        if config.image_mean is not None or config.image_std is not None:
            raise UserError(
                f"The teacher {config.name} is a Pix2Struct, which is shown images normalised by their own mean and "
                "deviation: leave out its image_mean and image_std."
            )
        return replace(config, resample=config.resample or "bilinear")
    if None not in (config.image_size, config.image_mean, config.image_std, config.resample):
        return config
    processor = _load_processor(config.checkpoint)
    image_mean, image_std = config.image_mean, config.image_std
    if image_mean is None or image_std is None:
        own_mean, own_std = _own_normalization(processor, config.checkpoint)
        image_mean = own_mean if image_mean is None else image_mean
        image_std = own_std if image_std is None else image_std
    number = getattr(processor, "resample", None)
    return replace(
        config,
        image_size=config.image_size or _shown_image_size(processor, config.checkpoint),
        image_mean=image_mean,
        image_std=image_std,
        resample=config.resample or _known_resample(FILTERS.get(number), number, config.checkpoint),
    )


def _complete_timm(config: TeacherConfig, own: dict) -> TeacherConfig:
    """The same for a model that timm loads, whose own configuration says it all."""
    name = own["interpolation"]
    return replace(
        config,
        image_size=config.image_size or own["input_size"][-1],
        image_mean=own["mean"] if config.image_mean is None else config.image_mean,
        image_std=own["std"] if config.image_std is None else config.image_std,
        resample=config.resample or _known_resample(name, name, config.checkpoint),
    )


def _make(config: TeacherConfig, model: PreTrainedModel, layer: int | None) -> Teacher:
    """The teacher of a transformers model, where nothing is left to be said."""
    if model.config.model_type == PIX2STRUCT:
        return Pix2StructTeacher(config.name, model, config.image_size, layer, config.resample)
    kind = NaflexTeacher if model.config.model_type == NAFLEX else Teacher
    return kind(
        config.name, model, config.image_size, config.image_mean, config.image_std, layer, resample=config.resample
    )


def _make_timm(config: TeacherConfig, model: Any) -> Teacher:
    config = _complete_timm(config, model.pretrained_cfg)
    shown = (config.image_size, config.image_mean, config.image_std)
    return TimmTeacher(config.name, model, *shown, config.layer, resample=config.resample)


def load_teacher(config: TeacherConfig, device: torch.device | str = "cpu") -> Teacher:
    """
    Loads a teacher from a folder or the hub.

    Raises:
        OSError: the hub has no such checkpoint, or it has no safetensors.
        ValueError: it is no folder of a model, weights are missing from it, its image processor does what teachers
            cannot, its grid is not known, or timm is needed and missing.
    """
    check_source("teacher", config.checkpoint)
    if is_timm(config.checkpoint):
        return _make_timm(config, load_timm_model(config).to(device))
    model, layer = load_vision_model(config)
    return _make(_complete(config, model), model.to(device), layer)


def load_teachers(configs: list[TeacherConfig], device: torch.device | str = "cpu") -> list[Teacher]:
    """Loads all teachers of a recipe."""
    return [load_teacher(config, device) for config in configs]


def outline_teacher(config: TeacherConfig, architecture: PretrainedConfig | None = None) -> Teacher:
    """
    A teacher on the meta device: its grid, its parameters and what it costs can be told, but it has no weights.

    Args:
        config ([`TeacherConfig`]):
            The teacher.
        architecture (`PretrainedConfig`, *optional*):
            The configuration of its checkpoint; none for a model that timm loads, whose name says it.

    Raises:
        ValueError: its grid is not known, or timm is needed and missing.
    """
    if architecture is None:
        return _make_timm(config, outline_timm_model(config))
    model, layer = outline_vision_model(config, architecture)
    if model.config.model_type != PIX2STRUCT:
        # What it is shown costs the same in any colours.
        config = replace(config, image_mean=[0.0] * 3, image_std=[1.0] * 3, resample=config.resample or "bicubic")
    return _make(_complete(config, model), model, layer)
