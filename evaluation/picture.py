"""An image named on the command line."""

from huggingface_hub.utils import httpx
from PIL import Image

from ..files.user_error import UserError, explain_errors
from ..processing.images_hawaii import open_image


def open_picture(image: str) -> Image.Image:
    """
    Opens an image.

    Args:
        image (`str`):
            Path or URL.

    Raises:
        UserError: The file is not an image or could not be loaded.
    """
    try:
        with explain_errors(types=ValueError):
            return open_image(image)
    except httpx.HTTPError as error:
        raise UserError(f"{image} could not be downloaded: {error}.") from error
