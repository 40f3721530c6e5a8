"""Prepares the images of an encoder that is trained without a language model."""

import os
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import AutoImageProcessor, CLIPImageProcessorPil, LlavaImageProcessorPil

from ..configuration.configuration_hawaii import HawaiiVisionConfig
from ..files.model_folder import IMAGE_PROCESSOR_FILES, find_damage
from ..files.user_error import UserError
from .image_processing_hawaii import HawaiiImageProcessor


def load_image_processor(source: str | None):
    """Loads the image processor of a checkpoint, or raises a `UserError`; CLIP's if `source` is `None`."""
    try:
        if source is None:
            return CLIPImageProcessorPil()
        # Without the option transformers would ask on the terminal whether to run the checkpoint's own code.
        return AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # libraries raise errors of every type for a damaged or missing file
        reason = find_damage(Path(str(source)), IMAGE_PROCESSOR_FILES) or error
        raise UserError(f"The image processor of {source} could not be loaded: {reason}") from error


def kernel_and_colors(original) -> dict[str, Any]:
    """
    Settings that a student's image processor takes from another one: its filter, and what it does with the colours.

    Raises:
        UserError: `original` does not normalise or resize, so it has none of them, or not with three colours.
    """
    settings = {name: getattr(original, name, None) for name in ("image_mean", "image_std", "resample")}
    missing = [name for name, value in settings.items() if value is None]
    if missing:
        raise UserError(
            f"The image processor {type(original).__name__} has no {missing[0]}, which a student's images need; set "
            "it in the checkpoint's preprocessor_config.json."
        )
    for name in ("image_mean", "image_std"):
        value = settings[name]
        is_list = isinstance(value, list | tuple) and all(isinstance(color, int | float) for color in value)
        if not is_list or len(value) != 3:
            raise UserError(
                f"The image processor {type(original).__name__} has {name} {value!r}, but a student's images need "
                "three numbers, one for each colour; set them in the checkpoint's preprocessor_config.json."
            )
    steps = ("do_rescale", "rescale_factor", "do_normalize")
    return settings | {name: getattr(original, name) for name in steps if getattr(original, name, None) is not None}


class EncoderProcessor:
    """
    Squares and normalises images. It saves one of transformers' image processors, which makes the squares by itself: a
    published encoder gets its images as in training, without code. (Only a long strip, or an image that is cropped and
    not padded, may differ by a few levels.)

    Args:
        original (image processor):
            Source of the resampling kernel, mean and standard deviation.
        vision_config (`HawaiiVisionConfig`):
            Source of the image size.
        image_aspect_ratio (`str`):
            How an image becomes a square: `pad` or `crop`.

    Attributes:
        image_processor (`HawaiiImageProcessor`):
            Prepares the images of training.
    """

    model_input_names = ["pixel_values"]

    def __init__(self, original, vision_config: HawaiiVisionConfig, image_aspect_ratio: str):
        size = {"height": vision_config.image_size, "width": vision_config.image_size}
        self.settings = {**kernel_and_colors(original), "crop_size": size}
        self.image_processor = HawaiiImageProcessor(image_aspect_ratio, size=size, **self.settings)

    @property
    def image_aspect_ratio(self) -> str:
        return self.image_processor.image_aspect_ratio

    def square_image(self, image) -> Image.Image:
        """Square of an image for the student and the teachers; see [`square_image`]."""
        return self.image_processor.square_image(image)

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Saves the image processor of transformers."""
        size = self.settings["crop_size"]
        if self.image_aspect_ratio == "pad":
            # Only LLaVA's image processor pads.
            LlavaImageProcessorPil(do_pad=True, size=size, **self.settings).save_pretrained(folder)
        else:
            CLIPImageProcessorPil(size={"shortest_edge": size["height"]}, **self.settings).save_pretrained(folder)
