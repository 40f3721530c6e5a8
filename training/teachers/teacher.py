"""The base class of teachers: frozen vision experts that map the shared uint8 images to grids of features."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PretrainedConfig

from ...files.user_error import UserError, explain_errors
from .config import TeacherConfig


# Pixels that a model processes at once, independent of the batch size: the student needs the memory. For a single
# image of 1024 x 1024 pixels, one attention layer of SAM takes half a GiB (16 heads x 4096 x 4096 cells x 2 bytes).
PIXELS_AT_ONCE = 8 * 1024**2
# Shapes: I images, S side of the shared image, h x w grid, P = h * w cells, C channels.


def resize_images(images: torch.Tensor, size: int, resample: str) -> torch.Tensor:
    """
    Resizes square images as Pillow does: antialiased, first along the rows and then along the columns, clipped and
    rounded to integers after each pass. A value half way between two integers may be rounded differently, so results
    differ from Pillow's by at most two levels, and for most sizes in fewer than one value of a hundred.

    Args:
        images (`torch.ByteTensor` of shape `(num_images, channels, side, side)`):
            Images, on any device.
        size (`int`):
            New side.
        resample (`str`):
            `"bicubic"` or `"bilinear"`.

    Returns:
        `torch.FloatTensor` of shape `(num_images, channels, size, size)`: integers from 0 to 255.
    """
    pixels = images.float()  # a copy, so that the operations in place leave the caller's images unchanged
    if images.shape[-1] == size:
        return pixels
    for shape in ((images.shape[-2], size), (size, size)):
        pixels = F.interpolate(pixels, size=shape, mode=resample, antialias=True)
        pixels = pixels.clamp_(0, 255).add_(0.5).floor_()  # rounds halves up, as Pillow does
    return pixels


def check_layer(name: str, layer: int, num_layers: int) -> None:
    """Raises a [`UserError`] unless teacher `name` has this layer; negative layers count from the end."""
    if not -num_layers <= layer < num_layers:
        raise UserError(
            f"Teacher {name} has no layer {layer}: its layers are numbered from {-num_layers} to {num_layers - 1}."
        )


class Teacher(ABC):
    """
    A frozen vision expert. It is not an `nn.Module`, so that no module that is trained or saved can contain it.

    Each kind of teacher is a subclass in its own file and one entry of `TEACHER_KINDS` (loading.py). The subclass
    decides which models it matches, builds them, preprocesses their images and reads their features. Its costs need no
    code: parameters and FLOPs are counted on the model that `outline_model` builds.

    Preprocessing reproduces the model's official image processor for square images, up to float rounding; if images
    are resized, up to the deviations that [`resize_images`] describes.

    Args:
        config ([`TeacherConfig`]):
            Options of the recipe. [`Teacher.complete`] adds those that the recipe omits.
        model (`nn.Module`):
            The model, which is frozen here. On the meta device only the grid and the costs are known.

    Attributes:
        grid (`tuple[int, int, int]`):
            Height, width and channels of the features.

    Raises:
        UserError: the model cannot process such images, or its features do not form a known grid.
    """

    # Context manager inside which the model has all its weights; [`shard`] replaces it.
    whole_model: Callable[[], AbstractContextManager] = nullcontext

    @classmethod
    @abstractmethod
    def matches(cls, architecture: PretrainedConfig) -> bool:
        """Whether this kind handles a model with this configuration, the vision part of a larger model's."""

    @classmethod
    @abstractmethod
    def load_model(cls, config: TeacherConfig, architecture: PretrainedConfig) -> Any:
        """Loads the model of a checkpoint from safetensors, on the CPU; `architecture` is the full configuration."""

    @classmethod
    @abstractmethod
    def outline_model(cls, config: TeacherConfig, architecture: PretrainedConfig) -> Any:
        """Builds the same model on the meta device, without weights and without downloads."""

    @property
    @abstractmethod
    def native_image_size(self) -> int | None:
        """Side of the images that the model was trained on, in pixels, if it is known."""

    @abstractmethod
    def complete(self, config: TeacherConfig) -> TeacherConfig:
        """Fills in the image size, normalisation and resampling that the recipe omits."""

    def __init__(self, config: TeacherConfig, model: nn.Module):
        # `Any`, because the type of a model does not declare its parts.
        self.model: Any = model.eval().requires_grad_(False)
        weight = next(model.parameters())
        self.device, self.dtype = weight.device, weight.dtype
        config = self.complete(config)
        assert config.name and config.image_size and config.image_mean and config.image_std and config.resample
        self.name, self.image_size = config.name, config.image_size
        self.layer, self.resample = config.layer, config.resample
        self.mean = torch.tensor(config.image_mean, device=self.device).view(1, -1, 1, 1) * 255
        self.std = torch.tensor(config.image_std, device=self.device).view(1, -1, 1, 1) * 255
        self.prepare()
        side = self.image_size
        blank = torch.zeros(1, 3, side, side, dtype=torch.uint8, device=self.device)
        with explain_errors(f"Teacher {self.name} ({type(model).__name__}) cannot process {side} x {side} pixels"):
            height, width, channels = self(blank).shape[1:]
        self.grid = (height, width, channels)

    @abstractmethod
    def prepare(self) -> None:
        """Precomputes constants of every call."""

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """
        Computes features in the teacher's precision, regardless of autocast, without synchronising with the device.

        Args:
            images (`torch.ByteTensor` of shape `(num_images, 3, side, side)`):
                The squares that the student and all teachers share, on the teacher's device.

        Returns:
            `torch.FloatTensor` of shape `(num_images, height, width, channels)`, without gradient.
        """
        device = self.device.type
        has_autocast = torch.amp.is_autocast_available(device)
        with self.whole_model(), torch.autocast(device, enabled=False) if has_autocast else nullcontext():
            chunks = images.split(max(1, PIXELS_AT_ONCE // self.image_size**2))
            features = [self.features(self.preprocess(chunk)) for chunk in chunks]
        return features[0] if len(features) == 1 else torch.cat(features)

    def preprocess(self, images: torch.Tensor) -> torch.Tensor:
        """Resizes and normalises images on their device; returns the input of the model."""
        pixels = resize_images(images, self.image_size, self.resample)
        return pixels.sub_(self.mean).div_(self.std).to(self.dtype)

    @abstractmethod
    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Runs the model on the output of [`Teacher.preprocess`]; returns features `(I, h, w, C)`, row by row."""

    def class_token_attention(self) -> Any:
        """
        Returns the attention module of the layer that the features come from, or `None` if the features have no class
        token or the module is not known.
        """
        return None

    def num_patches_a_side(self, patch_size: int) -> int:
        """
        Returns how many patches fit along a side. They must cover the image, except at the model's native size: SigLIP
        so400m ignores the last 6 of its 384 pixels, both as a teacher and as a student.
        """
        if self.image_size % patch_size and self.image_size != self.native_image_size:
            raise self.unknown_grid(f"its patches of {patch_size} pixels do not cover {self.image_size} pixels")
        return self.image_size // patch_size

    def unknown_grid(self, problem: str) -> UserError:
        """Returns the error for features whose positions in the image are not known."""
        return UserError(
            f"The grid of teacher {self.name} ({type(self.model).__name__}) is unknown: {problem}. Set its image_size "
            "to a multiple of its patch size, or choose a layer whose features are a map (layer: -1 for Swin)."
        )
