"""Images to what an encoder takes that learns without a language model."""

import os
from typing import Any

from PIL import Image
from transformers import AutoImageProcessor, CLIPImageProcessorPil, LlavaImageProcessorPil

from ..configuration.configuration_hawaii import HawaiiVisionConfig
from .processing_hawaii import square_image


def load_image_processor(source: str | None):
    """That of the checkpoint an encoder starts from, or CLIP's own where it starts from nothing."""
    return CLIPImageProcessorPil() if source is None else AutoImageProcessor.from_pretrained(source)


def kernel_and_colors(original) -> dict[str, Any]:
    """What a student's image processor takes over of another."""
    return {name: getattr(original, name) for name in ("image_mean", "image_std", "resample")}


class EncoderProcessor:
    """
    Squares and normalises images. What it saves is one of transformers' own image processors, which makes the squares
    by itself: an image is shown to a published encoder as it was in training. (Only an image that is cut and not
    padded to a square is resized before the cut, and so may differ by a few levels.)

    Args:
        original (image processor):
            Gives the kernel and the scale of colours.
        vision_config (`HawaiiVisionConfig`):
            Gives the size.
        image_aspect_ratio (`str`):
            How an image becomes a square: `pad` or `crop`.

    Attributes:
        image_processor (`LlavaImageProcessorPil` or `CLIPImageProcessorPil`):
            What is saved.
    """

    def __init__(self, original, vision_config: HawaiiVisionConfig, image_aspect_ratio: str):
        self.image_aspect_ratio = image_aspect_ratio
        side = vision_config.image_size
        own = kernel_and_colors(original)
        own["crop_size"] = {"height": side, "width": side}
        if image_aspect_ratio == "pad":
            # LLaVA's, for the one thing that it does more than CLIP's.
            self.image_processor = LlavaImageProcessorPil(do_pad=True, size=own["crop_size"], **own)
        else:
            self.image_processor = CLIPImageProcessorPil(size={"shortest_edge": side}, **own)

    def square_image(self, image) -> Image.Image:
        """What the student sees of an image, and teachers must be shown, see [`square_image`]."""
        return square_image(image, self.image_aspect_ratio, self.image_processor.image_mean)

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Writes the image processor."""
        self.image_processor.save_pretrained(folder)
