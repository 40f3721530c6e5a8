"""Pictures that strangers upload."""

import os
from typing import Any

from PIL import Image

from .visitor_error import VisitorError


# Formats that browsers and cameras write. Pillow hands others, as EPS, to other programs.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
LARGEST_FILE = 20 * 2**20  # bytes
LARGEST_AREA = 64_000_000  # pixels, of which each needs several bytes; a phone's camera makes 50 million


def open_upload(processor: Any, path: str | os.PathLike) -> Image.Image:
    """
    Opens an uploaded picture as the model's processor does, so that answers equal those of the file.

    Args:
        processor (`ProcessorMixin`):
            Processor of the model.
        path (`str` or `Path`):
            An uploaded file.

    Returns:
        `PIL.Image.Image` in RGB, upright.

    Raises:
        VisitorError: the file is not a picture in one of `FORMATS`, is damaged, or has too many pixels.
    """
    try:
        with Image.open(path, "r", FORMATS) as opened:  # reads the header only
            width, height = opened.size
    except Image.DecompressionBombError:
        raise VisitorError(f"The picture has more than {LARGEST_AREA:,} pixels; upload a smaller one.") from None
    except FileNotFoundError:
        raise VisitorError("The picture is not kept any longer; upload it again.") from None
    except Exception:  # Pillow raises anything from SyntaxError to struct.error
        raise VisitorError(
            f"This file is not a picture that can be read; upload one as {', '.join(FORMATS)}."
        ) from None
    if width * height > LARGEST_AREA:
        raise VisitorError(
            f"The picture has {width} x {height} pixels, more than {LARGEST_AREA:,}; upload a smaller one."
        )
    try:
        (image,) = processor.image_processor.fetch_images([os.fspath(path)])
    except Exception:  # as above; now the pixels are decoded
        raise VisitorError("The picture is damaged or incomplete; upload it again, or save it anew.") from None
    return image
