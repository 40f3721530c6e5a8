"""An encoder's images become squares in training, and what is saved makes the same of them by itself."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from hawaii.tests.tiny.encoders import make_encoder_processor
from hawaii.tests.tiny.models import make_processor
from hawaii.tests.tiny.training import make_image


SIZES = [(16, 16), (40, 24), (23, 57), (100, 33), (5, 5), (3, 8)]


def shown_in_training(processor, image):
    return processor.image_processor(processor.square_image(image), return_tensors="pt")["pixel_values"]


@pytest.mark.parametrize("image_aspect_ratio", ["pad", "crop"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_it_sees_what_a_whole_model_does(image_aspect_ratio, size):
    image = make_image(0, *size)
    whole = make_processor(image_aspect_ratio=image_aspect_ratio)
    ours = make_encoder_processor(image_aspect_ratio)
    assert ours.square_image(image).tobytes() == whole.square_image(image).tobytes()
    expected = whole(images=image, return_tensors="pt")["pixel_values"]
    assert torch.equal(shown_in_training(ours, image), expected)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_what_is_saved_pads_as_in_training_to_the_last_bit(tmp_path, size):
    processor = make_encoder_processor("pad", image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6])
    processor.save_pretrained(tmp_path)
    saved = AutoImageProcessor.from_pretrained(tmp_path)
    image = make_image(0, *size)
    shown = saved(image, return_tensors="pt")["pixel_values"]
    assert torch.equal(shown, shown_in_training(processor, image))


def test_what_is_saved_cuts_as_in_training_but_for_a_few_levels(tmp_path):
    processor = make_encoder_processor("crop", image_mean=[0.0] * 3, image_std=[1.0] * 3)
    processor.save_pretrained(tmp_path)
    saved = AutoImageProcessor.from_pretrained(tmp_path)
    row = np.linspace(0, 255, 120)[None, :, None] * np.linspace(0.5, 1, 80)[:, None, None]
    image = Image.fromarray(np.broadcast_to(row, (80, 120, 3)).astype(np.uint8))
    for turned in (image, image.transpose(Image.Transpose.ROTATE_90), image.resize((80, 80))):
        shown = saved(turned, return_tensors="pt")["pixel_values"]
        assert shown.shape == (1, 3, 16, 16)
        assert (shown - shown_in_training(processor, turned)).abs().max() < 6 / 255
