"""Pix2Struct's vision encoder as a teacher: its input is flattened patches, each with its row and its column."""

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from transformers import PretrainedConfig

from ...files.user_error import UserError
from .config import TeacherConfig
from .transformers_models import TransformersTeacher


# Maximum number of patches of the official processor.
MAX_PATCHES = 2048
# Shapes: I images, S side of the shared image, p side of a patch, h x w grid, P = h * w patches, C channels.


def flatten_patches(pixels: torch.Tensor, patch_size: int) -> torch.Tensor:
    """
    Cuts images into patches, row by row. In each patch, pixels are ordered row by row, and the channels of a pixel are
    adjacent.

    Args:
        pixels (`torch.FloatTensor` of shape `(num_images, channels, height, width)`):
            Images whose sides are multiples of `patch_size`.
        patch_size (`int`):
            Side of a patch.

    Returns:
        `torch.FloatTensor` of shape `(num_images, num_patches, patch_size * patch_size * channels)`.
    """
    blocks = pixels.unflatten(3, (-1, patch_size)).unflatten(2, (-1, patch_size))  # (I, C, h, p, w, p)
    return blocks.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


class Pix2StructTeacher(TransformersTeacher):
    """
    The vision encoder of a Pix2Struct, which receives the image without a text header. Arguments as for [`Teacher`];
    the default of `resample` is bilinear.

    As in the official processor, each image is normalised by the mean and deviation of all its values, before it is
    resized: here at the size of the image that all teachers share. The resized image is cut into patches, each with
    its row and column, counted from one, in front. The input equals that of the official processor up to float
    rounding, without its padding. (If torchvision is installed, the official processor divides by the sample
    deviation, which for `n` values differs by one part in `2 n`.)

    Raises:
        UserError: patches do not cover the image, or the recipe has a mean or a deviation.
    """

    @classmethod
    def matches(cls, architecture: PretrainedConfig) -> bool:
        return architecture.model_type == "pix2struct_vision_model"

    @property
    def patch_size(self) -> int:
        return math.isqrt(self.model.config.patch_embed_hidden_size // 3)

    @property
    def native_image_size(self) -> int | None:
        """Side of a square from which the official processor makes the maximum number of patches."""
        return math.isqrt(MAX_PATCHES) * self.patch_size

    def complete(self, config: TeacherConfig) -> TeacherConfig:
        if config.image_mean is not None or config.image_std is not None:
            raise UserError(
                f"The teacher {config.name} is a Pix2Struct, which normalises each image by its own mean and "
                "deviation: remove image_mean and image_std."
            )
        size, resample = config.image_size or self.native_image_size, config.resample or "bilinear"
        return replace(config, image_size=size, image_mean=[0.0] * 3, image_std=[1.0] * 3, resample=resample)

    def prepare(self) -> None:
        numbers = torch.arange(1, self.num_patches_a_side(self.patch_size) + 1, device="cpu")
        # (P, 2): row and column of each patch. The grid is derived from them, once and on the CPU.
        places = torch.cartesian_prod(numbers, numbers)
        rows, columns = places.amax(dim=0).tolist()
        self.shape = (rows, columns)
        self.order = ((places[:, 0] - 1) * columns + places[:, 1] - 1).argsort().to(self.device)
        self.places = places.to(self.device, self.dtype)

    def preprocess(self, images: torch.Tensor) -> torch.Tensor:
        """Normalises, resizes and cuts images into patches `(I, P, 2 + p * p * 3)`, on their device."""
        pixels = images.float()  # a copy, because other teachers use the same bytes
        mean = pixels.mean(dim=(1, 2, 3), keepdim=True)
        deviation = pixels.std(dim=(1, 2, 3), correction=0, keepdim=True)
        pixels.sub_(mean).div_(deviation.clamp(min=pixels[0].numel() ** -0.5))
        if pixels.shape[-1] != self.image_size:
            pixels = F.interpolate(pixels, size=(self.image_size,) * 2, mode=self.resample, antialias=True)
        patches = flatten_patches(pixels, self.patch_size).to(self.dtype)
        return torch.cat([self.places.expand(len(patches), -1, -1), patches], dim=-1)

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Runs the parts of the encoder; the model's own forward would wait for the device to find padding."""
        hidden_states = self.model.embeddings(pixels)
        outputs = self.model.encoder(hidden_states, output_hidden_states=self.layer is not None)
        if self.layer is None:
            tokens = self.model.layernorm(outputs.last_hidden_state)
        else:
            tokens = self.select_layer(outputs)
        return tokens[:, self.order].unflatten(1, self.shape)
