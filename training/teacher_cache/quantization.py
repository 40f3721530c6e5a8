"""Features in 8 bits: a scale and an offset for each channel of a few images."""

from typing import NamedTuple

import torch


# Cells that share a scale and an offset, four bytes together: they add less than half a percent to the values.
CELLS_PER_BLOCK = 1024
LARGEST = 127
# Shapes: n images, m cells, C channels, b blocks of images.


class Quantized(NamedTuple):
    """
    Features in 8 bits, `values * scale + offset`.

    Args:
        values (`torch.CharTensor` of shape `(num_images, num_cells, channels)`):
            Integers from -127 to 127.
        scale, offset (`torch.BFloat16Tensor` of shape `(num_blocks, channels)`):
            Of the channels of [`images_per_block`] successive images.
    """

    values: torch.Tensor
    scale: torch.Tensor
    offset: torch.Tensor


def images_per_block(num_cells: int) -> int:
    """Returns how many successive images share their scales: one or two of 24 x 24 cells, more of smaller grids."""
    return -(-CELLS_PER_BLOCK // num_cells)


def quantize(features: torch.Tensor) -> Quantized:
    """
    Quantizes features with the range of each channel.

    Args:
        features (`torch.FloatTensor` of shape `(num_images, num_cells, channels)`):
            Finite features.
    """
    values, scales, offsets = [], [], []
    for block in features.split(images_per_block(features.shape[1])):
        block = block.float()
        low, high = block.amin(dim=(0, 1)), block.amax(dim=(0, 1))  # (C,)
        # The values are computed from the rounded offset and scale, so that rounding these costs no precision.
        offset = ((low + high) / 2).bfloat16()
        scale = (torch.maximum(high - offset.float(), offset.float() - low) / LARGEST).bfloat16()
        scale = torch.where(scale == 0, 1, scale)  # a constant channel
        steps = (block - offset.float()) / scale.float()
        values.append(steps.round_().clamp_(-LARGEST, LARGEST).to(torch.int8))
        scales.append(scale)
        offsets.append(offset)
    return Quantized(torch.cat(values), torch.stack(scales), torch.stack(offsets))


def dequantize(values: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """
    Returns features `(num_images, num_cells, channels)` in `dtype`.

    Args:
        values (`torch.CharTensor` of shape `(num_images, num_cells, channels)`):
            As in [`Quantized`].
        scale, offset (`torch.BFloat16Tensor` of shape `(num_images, channels)`):
            Those of each image's block.
        dtype (`torch.dtype`):
            Precision of the result.
    """
    return (values.float() * scale.float()[:, None]).add_(offset.float()[:, None]).to(dtype)
