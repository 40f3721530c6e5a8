"""An encoder's images become squares in training, and the saved image processor makes the same squares."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, CLIPImageProcessorPil, Pix2StructImageProcessor

from hawaii.configuration.configuration_hawaii import HawaiiVisionConfig
from hawaii.files.user_error import UserError
from hawaii.processing.encoder_processor import EncoderProcessor, kernel_and_colors, load_image_processor
from hawaii.tests.tiny.encoders import make_encoder_processor
from hawaii.tests.tiny.models import make_processor
from hawaii.tests.tiny.training import make_image


SIZES = [(16, 16), (40, 24), (23, 57), (100, 33), (5, 5), (3, 8)]


def training_pixels(processor, image):
    return processor.image_processor(processor.square_image(image), return_tensors="pt")["pixel_values"]


@pytest.mark.parametrize("image_aspect_ratio", ["pad", "crop"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_an_encoder_gets_the_same_pixels_as_a_complete_model(image_aspect_ratio, size):
    image = make_image(0, *size)
    complete = make_processor(image_aspect_ratio=image_aspect_ratio)
    ours = make_encoder_processor(image_aspect_ratio)
    assert ours.square_image(image).tobytes() == complete.square_image(image).tobytes()
    expected = complete(images=image, return_tensors="pt")["pixel_values"]
    assert torch.equal(training_pixels(ours, image), expected)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_saved_processor_pads_bitwise_as_in_training(tmp_path, size):
    processor = make_encoder_processor("pad", image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6])
    processor.save_pretrained(tmp_path)
    saved = AutoImageProcessor.from_pretrained(tmp_path)
    image = make_image(0, *size)
    found = saved(image, return_tensors="pt")["pixel_values"]
    assert torch.equal(found, training_pixels(processor, image))


def test_the_saved_processor_crops_as_in_training_within_a_few_levels(tmp_path):
    processor = make_encoder_processor("crop", image_mean=[0.0] * 3, image_std=[1.0] * 3)
    processor.save_pretrained(tmp_path)
    saved = AutoImageProcessor.from_pretrained(tmp_path)
    row = np.linspace(0, 255, 120)[None, :, None] * np.linspace(0.5, 1, 80)[:, None, None]
    image = Image.fromarray(np.broadcast_to(row, (80, 120, 3)).astype(np.uint8))
    for turned in (image, image.transpose(Image.Transpose.ROTATE_90), image.resize((80, 80))):
        found = saved(turned, return_tensors="pt")["pixel_values"]
        assert found.shape == (1, 3, 16, 16)
        assert (found - training_pixels(processor, turned)).abs().max() < 6 / 255


@pytest.mark.parametrize(
    "settings", [{"do_rescale": False}, {"rescale_factor": 1 / 127.5}, {"do_normalize": False}], ids=str
)
def test_the_colours_are_those_of_the_original(settings):
    size = {"height": 16, "width": 16}
    original = CLIPImageProcessorPil(size=size, crop_size=size, **settings)
    image = make_image(0, 16, 16)
    expected = original(image, return_tensors="pt")["pixel_values"]
    usual = CLIPImageProcessorPil(size=size, crop_size=size)(image, return_tensors="pt")["pixel_values"]
    assert not torch.allclose(expected, usual)
    processor = EncoderProcessor(original, HawaiiVisionConfig(image_size=16, patch_size=4), "pad")
    torch.testing.assert_close(training_pixels(processor, image), expected)


def test_a_damaged_image_processor_is_named(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "of_tomorrow"}')
    with pytest.raises(UserError, match=f"The image processor of {tmp_path} could not be loaded"):
        load_image_processor(str(tmp_path))


def test_an_image_processor_without_normalisation_is_an_error(tmp_path):
    Pix2StructImageProcessor().save_pretrained(tmp_path)
    original = load_image_processor(str(tmp_path))
    with pytest.raises(UserError, match="Pix2StructImageProcessor\\w* has no image_mean, which a"):
        kernel_and_colors(original)


@pytest.mark.parametrize("value", ["x", 0.5, [0.5, 0.5], ["a", "b", "c"]], ids=str)
@pytest.mark.parametrize("name", ["image_mean", "image_std"])
def test_an_image_processor_without_three_colours_is_an_error(tmp_path, name, value):
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "CLIPImageProcessor", name: value})
    )
    original = load_image_processor(str(tmp_path))
    with pytest.raises(UserError, match=rf"has {name} .*, but a student's images need three numbers"):
        kernel_and_colors(original)
