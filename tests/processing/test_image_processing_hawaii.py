"""The pixels of an image are Pillow's in every environment, with and without torchvision."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor
from transformers.utils import is_torchvision_available

from hawaii.processing.image_processing_hawaii import HawaiiImageProcessor


SIDE = 32
SIZE = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
IMAGE = Image.effect_noise((150, 150), 90).convert("RGB")


def pillows_pixels(processor):
    """What Pillow makes of the image, computed here."""
    levels = np.asarray(IMAGE.resize((SIDE, SIDE), Image.Resampling.BICUBIC), dtype=np.float32)
    normalized = (levels / 255 - np.float32(processor.image_mean)) / np.float32(processor.image_std)
    return torch.from_numpy(normalized.transpose(2, 0, 1))[None]


def check_pixels(processor):
    expected = pillows_pixels(processor)
    # Levels are integers: one level is 0.0146, so a smaller difference is none.
    torch.testing.assert_close(processor(IMAGE, return_tensors="pt")["pixel_values"], expected, rtol=0, atol=1e-5)
    as_array = processor(np.asarray(IMAGE), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(as_array, expected, rtol=0, atol=1e-5)


def test_pixels_are_pillows_without_torchvision():
    assert not is_torchvision_available()
    check_pixels(HawaiiImageProcessor(**SIZE))


@pytest.mark.timm
def test_pixels_are_pillows_with_torchvision():
    """There CLIP's own image processor resizes in torch, whose levels differ from Pillow's by one."""
    clip = CLIPImageProcessor(**SIZE)
    assert is_torchvision_available() and "Torchvision" in {base.__name__[:11] for base in type(clip).__mro__}
    difference = clip(IMAGE, return_tensors="pt")["pixel_values"] - pillows_pixels(clip)
    assert 0.01 < difference.abs().max() < 0.02
    check_pixels(HawaiiImageProcessor(**SIZE))
    # A processor of CLIP that a checkpoint brings is made Pillow's, too.
    check_pixels(HawaiiImageProcessor.from_dict(clip.to_dict()))
