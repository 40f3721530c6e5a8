"""Pix2Struct's vision encoder as a teacher: it is shown flattened patches, each with its row and its column."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from .teacher import Teacher


# Shapes: I images, S side of the shared image, p side of a patch, h x w grid, P = h * w patches, C channels.


def flatten_patches(pixels: torch.Tensor, patch_size: int) -> torch.Tensor:
    """
    Cuts images into patches, row by row; in each, pixels go row by row, and the values of a pixel stay together.

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


class Pix2StructTeacher(Teacher):
    """
    The vision encoder of a Pix2Struct, shown the image alone, without a header of text.

    Every image is normalised by the mean and the deviation of all its own values, as the official processor does. That
    comes before the resizing, so it is done at the size of the image that all teachers share. Then the image is
    resized and cut into patches, before each of which stand its row and its column, counted from one. What the model
    is shown equals what the official processor makes of the same image, to float rounding, but that no padding is
    made. (Where torchvision is installed, that processor's deviation is that of a sample: for `n` values it differs by
    one part in `2 n`.)

    Args:
        name (`str`):
            What its losses are logged as.
        model (`Pix2StructVisionModel`):
            It is frozen here.
        image_size (`int`):
            Side of the square that is cut into patches, in pixels; a multiple of the patch size.
        layer (`int`, *optional*):
            Which of its `hidden_states` is taught; the last, after the last norm, if not given.
        resample (`str`, *optional*, defaults to `"bilinear"`):
            How images are resized, `"bicubic"` or `"bilinear"`.

    Raises:
        ValueError: patches do not cover the square.
    """

    def __init__(
        self, name: str, model: nn.Module, image_size: int, layer: int | None = None, resample: str = "bilinear"
    ):
        super().__init__(name, model, image_size, [0.0] * 3, [1.0] * 3, layer, resample)

    def prepare(self) -> None:
        self.patch_size = math.isqrt(self.model.config.patch_embed_hidden_size // 3)
        numbers = torch.arange(1, self.num_patches_a_side(self.patch_size) + 1, device="cpu")
        # (P, 2): the row and the column of each patch, from which the grid is read: once, and on the CPU.
        places = torch.cartesian_prod(numbers, numbers)
        rows, columns = places.amax(dim=0).tolist()
        self.shape = (rows, columns)
        self.order = ((places[:, 0] - 1) * columns + places[:, 1] - 1).argsort().to(self.device)
        self.places = places.to(self.device, self.dtype)

    def preprocess(self, images: torch.Tensor) -> torch.Tensor:
        """Normalises, resizes and cuts into patches, on the device: `(I, P, 2 + p * p * 3)`."""
        pixels = images.float()  # a copy: the other teachers see the bytes
        mean = pixels.mean(dim=(1, 2, 3), keepdim=True)
        deviation = pixels.std(dim=(1, 2, 3), correction=0, keepdim=True)
        pixels.sub_(mean).div_(deviation.clamp(min=pixels[0].numel() ** -0.5))
        if pixels.shape[-1] != self.image_size:
            pixels = F.interpolate(pixels, size=(self.image_size,) * 2, mode=self.resample, antialias=True)
        patches = flatten_patches(pixels, self.patch_size).to(self.dtype)
        return torch.cat([self.places.expand(len(patches), -1, -1), patches], dim=-1)

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Runs the encoder part by part: its own forward would ask the device where there is padding."""
        hidden_states = self.model.embeddings(pixels)
        outputs = self.model.encoder(hidden_states, output_hidden_states=self.layer is not None)
        if self.layer is None:
            tokens = self.model.layernorm(outputs.last_hidden_state)
        else:
            tokens = self.choose(outputs.hidden_states, self.layer)
        return tokens[:, self.order].unflatten(1, self.shape)
