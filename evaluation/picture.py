"""An image that a user names on the command line."""

from huggingface_hub.utils import httpx
from PIL import Image

from ..files.user_error import UserError, explain_errors
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
        with explain_errors(types=ValueError):
            return open_image(image)
    except httpx.HTTPError as error:
        raise UserError(f"{image} cannot be fetched: {error}.") from error
