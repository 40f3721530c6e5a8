"""An image that a user names on the command line."""

from huggingface_hub.utils import httpx
from PIL import Image

from ..processing.processing_hawaii import open_image


def open_picture(image: str) -> Image.Image:
    """
    Opens an image.

    Args:
        image (`str`):
            Path or address.

    Raises:
        ValueError: it is no image, or not to be had.
    """
    try:
        return open_image(image)
    except httpx.HTTPError as error:
        raise ValueError(f"{image} cannot be fetched: {error}.") from error
