"""Frozen vision experts: one shared uint8 image in, a grid of features out."""

import inspect
import math
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoImageProcessor, AutoModel

from ..configuration.configuration_hawaii import check_choice
from .sources import check_source


# Shapes: I images, S side of the shared image, h x w grid, C channels.

DTYPES = ("float32", "bfloat16", "float16")
# The variances of the student and of the coarse-grained target are logged by these names.
TAKEN_NAMES = ("student", "coarse")


@dataclass
class TeacherConfig:
    """
    A teacher in a recipe.

    Args:
        checkpoint (`str`):
            Folder or hub id of a vision model that `AutoModel` loads.
        name (`str`, *optional*):
            What its losses are logged as; the last part of `checkpoint` if not given.
        image_size (`int`, *optional*):
            Side of the image it is shown, in pixels; its own configuration's or image processor's if not given.
        image_mean, image_std (`list[float]`, *optional*):
            Its normalisation; its own image processor's if not given.
        layer (`int`, *optional*):
            Which of its `hidden_states` is taught; `last_hidden_state` if not given.
        dtype (`str`, *optional*, defaults to `"float32"`):
            Precision it runs in.
    """

    checkpoint: str
    name: str | None = None
    image_size: int | None = None
    image_mean: list[float] | None = None
    image_std: list[float] | None = None
    layer: int | None = None
    dtype: str = "float32"

    def __post_init__(self):
        if not isinstance(self.checkpoint, str) or not self.checkpoint:
            raise ValueError(
                f"The checkpoint of a teacher is {self.checkpoint!r}; it must be the folder or hub id of a model."
            )
        if self.name is None:
            self.name = self.checkpoint.rstrip("/").rpartition("/")[2]
        if not isinstance(self.name, str) or not self.name or self.name in TAKEN_NAMES:
            raise ValueError(
                f"The name of teacher {self.checkpoint} is {self.name!r}; it must be text that the log does not use "
                f"already ({', '.join(TAKEN_NAMES)}). Give it one (fields checkpoint, name)."
            )
        for field in ("image_size", "layer"):
            value = getattr(self, field)
            if value is not None and type(value) is not int:
                raise ValueError(f"The {field} of teacher {self.name} is {value!r}; it must be a whole number.")
        for field in ("image_mean", "image_std"):
            value = getattr(self, field)
            is_color = isinstance(value, list | tuple) and [type(item) in (int, float) for item in value] == [True] * 3
            if value is not None and not is_color:
                raise ValueError(f"The {field} of teacher {self.name} is {value!r}; it must be a list of 3 numbers.")
        check_choice(f"The dtype of teacher {self.checkpoint}", self.dtype, DTYPES)

    @classmethod
    def parse(cls, value: str | dict) -> "TeacherConfig":
        """A teacher of a recipe: a checkpoint alone, or the fields above."""
        known = [field.name for field in fields(cls)]
        if not isinstance(value, str | dict):
            raise ValueError(f"A teacher is {value!r}; it must be a checkpoint or a mapping of {', '.join(known)}.")
        values = {"checkpoint": value} if isinstance(value, str) else value
        unknown = [name for name in values if name not in known]
        if unknown or "checkpoint" not in values:
            problem = f"has no field {unknown[0]!r}" if unknown else "needs a checkpoint"
            raise ValueError(f"A teacher {problem}: {value}. Its fields are {', '.join(known)}.")
        return cls(**values)


def _accepts(model: nn.Module, argument: str) -> bool:
    return argument in inspect.signature(model.forward).parameters


def _own_image_size(model: nn.Module) -> int | None:
    size = getattr(model.config, "image_size", None)
    return size[0] if isinstance(size, list | tuple) else size


class Teacher:
    """
    A frozen vision expert. It is no `nn.Module`, so that nothing that trains or saves can come to hold it.

    Args:
        name (`str`):
            What its losses are logged as.
        model (`nn.Module`):
            A transformers vision model; it is frozen here.
        image_size (`int`):
            Side of the image it is shown, in pixels.
        image_mean, image_std (`list[float]`):
            Its normalisation.
        layer (`int`, *optional*):
            Which of its `hidden_states` is taught; `last_hidden_state` if not given.

    Attributes:
        grid (`tuple[int, int, int]`):
            Height, width and channels of its features.
    """

    def __init__(self, name: str, model: nn.Module, image_size: int, image_mean, image_std, layer: int | None = None):
        self.name = name
        self.model = model.eval().requires_grad_(False)
        self.image_size = image_size
        self.layer = layer
        weight = next(model.parameters())
        self.mean = torch.tensor(image_mean, device=weight.device).view(1, -1, 1, 1) * 255
        self.std = torch.tensor(image_std, device=weight.device).view(1, -1, 1, 1) * 255
        self.dtype = weight.dtype
        self.options = {"output_hidden_states": True} if layer is not None else {}
        if _own_image_size(model) not in (None, image_size) and _accepts(model, "interpolate_pos_encoding"):
            self.options["interpolate_pos_encoding"] = True
        blank = torch.zeros(1, len(image_mean), image_size, image_size, dtype=torch.uint8, device=weight.device)
        self.grid = tuple(self(blank).shape[1:])

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """
        Args:
            images (`torch.ByteTensor` of shape `(num_images, 3, side, side)`):
                The student's own squares, on the teacher's device.

        Returns:
            `torch.FloatTensor` of shape `(num_images, height, width, channels)`, without gradient.

        Raises:
            ValueError: the model gives no grid that can be known.
        """
        outputs = self.model(self.preprocess(images), **self.options)
        return self._as_grid(outputs)

    def preprocess(self, images: torch.Tensor) -> torch.Tensor:
        """Resizes to the teacher's resolution and normalises, on the device."""
        pixels = images.float()
        if pixels.shape[-1] != self.image_size:
            size = (self.image_size, self.image_size)
            pixels = F.interpolate(pixels, size=size, mode="bicubic", antialias=True).clamp(0, 255)
        return ((pixels - self.mean) / self.std).to(self.dtype)

    def _as_grid(self, outputs) -> torch.Tensor:
        if self.layer is None:
            features = outputs.last_hidden_state
        else:
            layers = outputs["reshaped_hidden_states" if "reshaped_hidden_states" in outputs else "hidden_states"]
            if not -len(layers) <= self.layer < len(layers):
                span = f"from {-len(layers)} to {len(layers) - 1}"
                raise ValueError(f"Teacher {self.name} has no layer {self.layer}: its layers go {span}.")
            features = layers[self.layer]
        if features.ndim == 3:
            return self._tokens_as_grid(features)
        if features.ndim == 4 and features.shape[2] == features.shape[3]:
            return features.permute(0, 2, 3, 1)  # transformers gives feature maps channels first
        shape = " x ".join(str(size) for size in features.shape[1:])
        raise self._unknown_grid(f"it gives {shape}, where channels x side x side would be a map")

    def _tokens_as_grid(self, tokens: torch.Tensor) -> torch.Tensor:
        patch_size = getattr(self.model.config, "patch_size", None)
        if not isinstance(patch_size, int) or self.image_size % patch_size:
            raise self._unknown_grid(
                f"it gives {tokens.shape[1]} tokens for an image of {self.image_size} pixels, and its patch size is "
                f"{patch_size}"
            )
        side = self.image_size // patch_size
        num_others = tokens.shape[1] - side * side
        num_registers = getattr(self.model.config, "num_register_tokens", 0)
        if num_others not in (0, 1 + num_registers):
            raise self._unknown_grid(
                f"it gives {tokens.shape[1]} tokens, which is neither {side} x {side} nor that and "
                f"{1 + num_registers} class and register tokens"
            )
        return tokens[:, num_others:].unflatten(1, (side, side))

    def _unknown_grid(self, problem: str) -> ValueError:
        return ValueError(
            f"The grid of teacher {self.name} ({type(self.model).__name__}) is unknown: {problem}. Give it an "
            "image_size that is a multiple of its patch size, or name a layer whose features are a map (layer: -1 for "
            "Swin)."
        )


def _shown_image_size(processor) -> int:
    size = dict(getattr(processor, "crop_size", None) or processor.size)
    return size.get("height") or size["shortest_edge"]


def _own_normalization(processor, checkpoint: str) -> tuple[list[float], list[float]]:
    """
    The mean and the standard deviation of a teacher's own image processor, of values from zero to one.

    Raises:
        ValueError: it makes something else of an image than scaling and normalising it.
    """
    # Not every image processor has all of these.
    factor = getattr(processor, "rescale_factor", 1 / 255) if getattr(processor, "do_rescale", True) else 1
    if not math.isclose(factor, 1 / 255, rel_tol=1e-4):
        problem = f"multiplies pixels by {factor:.6g}, where teachers are shown values from zero to one"
    elif getattr(processor, "do_flip_channel_order", False):
        problem = "turns the channels round, where teachers are shown red, green and blue"
    elif not getattr(processor, "do_normalize", True):
        return [0.0] * 3, [1.0] * 3
    else:
        return processor.image_mean, processor.image_std
    raise ValueError(f"The image processor of teacher {checkpoint} {problem}: give it image_mean and image_std.")


def load_teacher(config: TeacherConfig, device: torch.device | str = "cpu") -> Teacher:
    """
    Loads a teacher from a folder or the hub.

    Raises:
        OSError: the hub has no such checkpoint.
        ValueError: it is no folder of a model, weights are missing from it, its image processor does what teachers
            cannot, or its grid is not known.
    """
    check_source("teacher", config.checkpoint)
    dtype = getattr(torch, config.dtype)
    model, report = AutoModel.from_pretrained(config.checkpoint, dtype=dtype, output_loading_info=True)
    missing = sorted(
        name for name in report["missing_keys"] if "pooler" not in name
    )  # pooling comes after the features
    if missing:
        raise ValueError(
            f"{config.checkpoint} lacks {len(missing)} weights of its {type(model).__name__} ({missing[0]}, ...): as "
            "a teacher it would teach noise. Save it with `save_pretrained` of that class."
        )
    model = getattr(model, "vision_model", model).to(device)  # the image half of a CLIP
    image_mean, image_std = config.image_mean, config.image_std
    image_size = config.image_size or _own_image_size(model)
    if image_mean is None or image_std is None or image_size is None:
        processor = AutoImageProcessor.from_pretrained(config.checkpoint)
        if image_mean is None or image_std is None:
            own_mean, own_std = _own_normalization(processor, config.checkpoint)
            image_mean = own_mean if image_mean is None else image_mean
            image_std = own_std if image_std is None else image_std
        image_size = image_size or _shown_image_size(processor)
    return Teacher(config.name, model, image_size, image_mean, image_std, config.layer)


def load_teachers(configs: list[TeacherConfig], device: torch.device | str = "cpu") -> list[Teacher]:
    """
    Loads all teachers of a recipe.

    Raises:
        ValueError: two of them bear one name, so that their losses could not be told apart.
    """
    names = [config.name for config in configs]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"Two teachers are called {name}; give each a name of its own (fields checkpoint, name).")
    return [load_teacher(config, device) for config in configs]
