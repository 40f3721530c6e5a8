"""Opens images of every form that transformers and datasets give, and makes them square."""

import os
from base64 import b64decode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BytesIO
from typing import Any
from urllib.request import urlopen

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from transformers import image_utils


IMAGE_ASPECT_RATIOS = ("pad", "crop")
Image.init()
# Formats that Pillow decodes by itself. It hands others, as EPS, to programs that a stranger's file must not reach.
RASTER_FORMATS = """
    AVIF BMP DDS DIB GIF ICNS ICO JPEG JPEG2000 MPO PCX PNG PPM PSD QOI SGI TGA TIFF WEBP
""".split()
OPENED_FORMATS = [name for name in RASTER_FORMATS if name in Image.OPEN]  # an MPO is opened as a JPEG
ORIENTATION = 0x0112
ON_ITS_SIDE = (5, 6, 7, 8)  # orientations of images whose sides are exchanged
LONGEST_NAME = 250
LONGEST_SIDE = 2**17  # pixels; a file of some kB may claim more, and a filter needs memory for each
BAND_AREA = 2**22  # pixels that are resized at once where a large image is resized in parts
TIMEOUT = 60.0  # seconds without an answer


def _name(image: Any) -> str:
    """Returns an image as an error shows it."""
    if isinstance(image, bytes | bytearray | memoryview):
        return f"A value of {len(image)} bytes"
    if hasattr(image, "shape"):
        return f"A value of type {type(image).__name__}"
    name = str(image) if isinstance(image, str | os.PathLike) else repr(image)
    return name if len(name) <= LONGEST_NAME else f"{name[:60]}..."


def _download(url: str) -> bytes:
    # Fetched as transformers does, whose own loader would make the image one of 8 bits: by httpx in transformers 5, by
    # requests in 4.57.
    try:
        if hasattr(image_utils, "httpx"):
            response = image_utils.httpx.get(url, timeout=TIMEOUT, follow_redirects=True)
        else:
            response = image_utils.requests.get(url, timeout=TIMEOUT)  # pyright: ignore[reportAttributeAccessIssue]
        response.raise_for_status()
    except Exception as error:  # each library has its own classes
        raise ValueError(f"{_name(url)} could not be downloaded: {error}") from error
    return response.content


def _find_file(image: Any) -> Any:
    """
    Returns the path of an image, or its file in memory.

    Raises:
        ValueError: there is no such file, or the value is not an image.
    """
    if isinstance(image, bytes | bytearray | memoryview):
        return BytesIO(image)
    if hasattr(image, "read"):
        return image
    if not isinstance(image, str | os.PathLike):
        raise ValueError(
            f"{_name(image)} is no image; give a path, a URL, base64 text, bytes, a PIL image, an array or a tensor."
        )
    text = os.fspath(image)
    if text.startswith(("http://", "https://")):
        return BytesIO(_download(text))
    try:
        if text.startswith("data:"):
            with urlopen(text) as file:
                return BytesIO(file.read())
        if os.path.isfile(text):
            return text
        file = BytesIO(b64decode(text))
        with suppress(Image.DecompressionBombError):  # raised again when it is opened
            Image.open(file, "r", OPENED_FORMATS)
    except (OSError, ValueError):  # of base64, or an `UnidentifiedImageError`
        raise ValueError(f"There is no image {_name(image)}.") from None
    return file


def _is_channels_first(shape: torch.Size) -> bool:
    """
    Whether channels come first. If the first and the last dimension can both be channels, 1 or 3 decide before 2 or 4,
    and the first before the last, as in transformers.

    Raises:
        ValueError: neither is.
    """
    for channels, dimensions in (((1, 3), (0, 2)), ((2, 4), (2, 0))):
        for dimension in dimensions:
            if shape[dimension] in channels:
                return dimension == 0
    raise ValueError(f"neither the first nor the last dimension of shape {tuple(shape)} is 1 to 4 colours")


def _to_levels(values: torch.Tensor) -> torch.Tensor:
    """
    Converts values to levels from 0 to 255, uint8: floating-point values up to 1 are fractions of white, and if any is
    more than 255 all are of 16 bits. An image has the same levels whether it was a file, a PIL image or a tensor.

    Raises:
        ValueError: values are negative, not a number, or of more than 16 bits.
    """
    if values.dtype == torch.uint8:
        return values
    is_floating = values.is_floating_point()
    values = values * 255.0 if values.dtype == torch.bool else values.float()
    low, high = values.aminmax()
    if not (low > -0.01 and high < 2**16):
        raise ValueError(f"its values are from {low:g} to {high:g}, but must be from 0 to 1, 255 or 65535")
    if is_floating and high < 1.01:
        values = values * 255
    elif high >= 256:
        values = (values / 256).floor()
    return values.round().clamp(0, 255).byte()


def _from_values(values: torch.Tensor) -> Image.Image:
    """
    Returns the RGB image of a tensor.

    Args:
        values (`torch.Tensor` of shape `(height, width)`, `(channels, height, width)` or `(height, width, channels)`):
            Gray or colours; a second or fourth channel, the opacity, is ignored as in a file.
    """
    if values.ndim not in (2, 3) or not values.numel():
        raise ValueError(f"its shape {tuple(values.shape)} is not height x width, with 1 to 4 colours first or last")
    if values.ndim == 3:
        if _is_channels_first(values.shape):
            values = values.permute(1, 2, 0)  # (H, W, C)
        values = values[..., :3] if values.shape[-1] > 2 else values[..., 0]
    return Image.fromarray(_to_levels(values).contiguous().numpy()).convert("RGB")


def _find_orientation(image: Image.Image) -> int | None:
    """Returns the orientation that an image's EXIF gives, or `None`."""
    try:
        return image.getexif().get(ORIENTATION)
    except Exception:  # of damaged EXIF, in a file whose pixels may be good
        return None


def _upright_rgb(image: Image.Image) -> Image.Image:
    if image.format not in (None, *RASTER_FORMATS):
        raise UnidentifiedImageError
    if not 0 < min(image.size) <= max(image.size) <= LONGEST_SIDE:
        raise ValueError(f"its size is {image.width} x {image.height}, but sides must have 1 to {LONGEST_SIDE} pixels")
    image.load()
    if _find_orientation(image) is not None:
        image = ImageOps.exif_transpose(image)
    if image.mode == "RGB":
        return image
    if image.mode[0] in "IF":  # gray of more than 8 bits, which Pillow would clip
        mode, dtype = ("F", torch.float32) if image.mode == "F" else ("I", torch.int32)
        values = torch.frombuffer(bytearray(image.convert(mode).tobytes()), dtype=dtype)
        values = values.view(image.height, image.width)
        if image.mode.startswith("I;16"):  # 16 bits also if all values are dark
            values = (values // 256).byte()
        return _from_values(values)
    return image.convert("RGB")


@contextmanager
def _explain_errors(image: Any) -> Iterator[None]:
    try:
        yield
    except UnidentifiedImageError:
        raise ValueError(
            f"{_name(image)} is no image that Pillow can read without other programs; convert it to PNG or JPEG."
        ) from None
    except Image.DecompressionBombError:
        raise ValueError(
            f"{_name(image)} has more than {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels; make it smaller."
        ) from None
    except Exception as error:  # Pillow raises anything from SyntaxError to struct.error
        reason = str(error) or type(error).__name__  # a MemoryError says nothing
        raise ValueError(f"{_name(image)} is no image that Pillow can read ({reason}).") from error


def open_image(image: Any) -> Image.Image:
    """
    Opens an image.

    Args:
        image (`str`, `Path`, `bytes`, file, `PIL.Image.Image`, array, tensor or `dict`):
            A path, URL, `data:` address or base64 text; the content of a file; a PIL image; an array or tensor,
            channels first or last; or what `datasets.Image(decode=False)` gives, `{"bytes", "path"}`.

    Returns:
        `PIL.Image.Image` in RGB, upright. Opacity is ignored, as in LLaVA, and 16 bits are reduced to 8.

    Raises:
        ValueError: there is no such file, it is not an image in one of `RASTER_FORMATS`, or a side is longer than
            `LONGEST_SIDE`; names it.
    """
    if isinstance(image, dict):
        content = image.get("bytes")
        return open_image(image.get("path") if content is None else content)
    source = image if hasattr(image, "shape") or isinstance(image, Image.Image) else _find_file(image)
    with _explain_errors(image):
        if isinstance(source, Image.Image):
            return _upright_rgb(source)
        if isinstance(source, torch.Tensor):
            return _upright_rgb(_from_values(source.detach().cpu()))
        if hasattr(source, "shape"):
            # A copy in the machine's byte order: torch accepts no other, and no read-only or reversed array.
            array = source.astype(source.dtype.newbyteorder("="), order="C")
            return _upright_rgb(_from_values(torch.from_numpy(array)))
        with Image.open(source, "r", OPENED_FORMATS) as opened:
            return _upright_rgb(opened)


def read_image_size(image: str | os.PathLike | bytes) -> tuple[int, int]:
    """
    Returns the height and width of the image that [`open_image`] makes of a file or its content. Of most formats only
    the first bytes are read.

    Raises:
        ValueError: there is no such file, or it is not an image in one of `RASTER_FORMATS`; names it.
    """
    source = _find_file(image)
    with _explain_errors(image), Image.open(source, "r", OPENED_FORMATS) as opened:
        # Pillow exchanges the sides of a TIFF itself.
        if opened.format != "TIFF" and _find_orientation(opened) in ON_ITS_SIDE:
            return opened.width, opened.height
        return opened.height, opened.width


def flatten_images(images: Any) -> list:
    """Returns the images of an image, a batch of arrays, a sequence of images, or one of such sequences."""
    is_sequence = isinstance(images, Sequence) and not isinstance(images, str | bytes | bytearray | memoryview)
    if is_sequence or getattr(images, "ndim", 3) > 3:
        return [image for item in images for image in flatten_images(item)]
    return [images]


def to_planes(image: Image.Image) -> torch.Tensor:
    """Returns the levels of an RGB image, uint8 of shape `(3, height, width)`."""
    # Plane by plane, Pillow copies faster than torch could permute, and the result is contiguous.
    planes = bytearray().join(band.tobytes() for band in image.split())
    return torch.frombuffer(planes, dtype=torch.uint8).view(3, image.height, image.width)


def _resize_padded_rows(
    image: Image.Image, length: int, side: int, resample: int, color: tuple[int, ...]
) -> tuple[Image.Image, int]:
    """
    Resizes rows that are padded on both sides from `length` to `side` pixels, without the padding in memory.

    Returns:
        The columns that show some of the image, and the index of the first.
    """
    width, start = image.width, (length - image.width) // 2
    # What the filter makes of a row in which one pixel of the image is 1 are the weights of that pixel.
    weights = []
    for pixels in torch.arange(start, start + width).split(max(1, BAND_AREA // length)):
        impulses = F.one_hot(pixels, length).float()  # (pixels, length)
        resized = Image.fromarray(impulses.numpy()).resize((side, len(pixels)), Image.Resampling(resample))
        weights.append(torch.frombuffer(bytearray(resized.tobytes()), dtype=torch.float32).view(-1, side))
    weights = torch.cat(weights)  # (width, side)
    shown = weights.any(dim=0).nonzero().flatten().tolist() or [0]  # the nearest pixels may all be padding
    first, last = shown[0], shown[-1] + 1
    weights = weights[:, first:last]
    result = Image.new("RGB", (last - first, image.height))
    for top, band in _bands(image, width):
        colors = []
        for plane, padding in zip(to_planes(band), color):
            values = plane.float() @ weights + padding * (1 - weights.sum(dim=0))  # (height of band, last - first)
            colors.append(Image.fromarray(values.round_().clamp_(0, 255).byte().numpy()))
        result.paste(Image.merge("RGB", colors), (0, top))
    return result, first


def _bands(image: Image.Image, width: int) -> Iterator[tuple[int, Image.Image]]:
    """Yields rows of an image, as many as make a small image of this width, and the index of the first."""
    num_rows = max(1, BAND_AREA // width)
    for top in range(0, image.height, num_rows):
        yield top, image.crop((0, top, image.width, min(top + num_rows, image.height)))


def _pad(image: Image.Image, side: int, resample: int, color: tuple[int, ...]) -> Image.Image:
    """
    Pads an image to a square and resizes it, without the square in memory. Pillow resizes rows before columns and
    rounds in between, so both can be done in turn, each on no more padding than it needs.
    """
    (width, height), length = image.size, max(image.size)
    kernel = Image.Resampling(resample)
    top, left = (length - height) // 2, (length - width) // 2
    if width > height and length * side <= 4 * max(width * height, side**2):
        # Above and below the image, rows are of one colour, whatever their width.
        strip = Image.new("RGB", (side, length), color)
        strip.paste(image.resize((side, height), kernel), (0, top))
        return strip.resize((side, side), kernel)
    if width <= height and length**2 <= 4 * max(width * height, side**2):
        strip = Image.new("RGB", (side, length), color)
        for first, band in _bands(image, length):
            square = Image.new("RGB", (length, band.height), color)
            square.paste(band, (left, 0))
            strip.paste(square.resize((side, band.height), kernel), (0, first))
        return strip.resize((side, side), kernel)
    square = Image.new("RGB", (side, side), color)
    if width > height:
        strip = image.resize((side, height), kernel).transpose(Image.Transpose.TRANSPOSE)
        shown, first = _resize_padded_rows(strip, length, side, resample, color)
        square.paste(shown.transpose(Image.Transpose.TRANSPOSE), (0, first))
    else:
        shown, first = _resize_padded_rows(image, length, side, resample, color)
        square.paste(shown.resize((shown.width, side), kernel), (first, 0))
    return square


def square_image(
    image: Any,
    image_aspect_ratio: str,
    image_mean: list[float],
    side: int | None = None,
    resample: int = Image.Resampling.BICUBIC,
) -> Image.Image:
    """
    Makes the square image for the student or a teacher; both must see the same part of it.

    Args:
        image:
            As for [`open_image`].
        image_aspect_ratio (`str`):
            `"pad"` with the mean colour to its longer side (LLaVA-1.5's stage 2), or `"crop"` to its centre (stage 1).
        image_mean (`list[float]`):
            The mean colour, as values from zero to one.
        side (`int`, *optional*):
            Side of the square; the image's own if not given.
        resample (`int`, *optional*, defaults to bicubic):
            Pillow's filter.

    Returns:
        `PIL.Image.Image` in RGB whose sides are equal.

    Raises:
        ValueError: the file does not exist or is not an image.
    """
    image = open_image(image)
    width, height = image.size
    if image_aspect_ratio == "crop":
        shorter = min(width, height)
        left, top = (width - shorter) // 2, (height - shorter) // 2
        image = image.crop((left, top, left + shorter, top + shorter))
    elif width != height:
        # Rounded down, as in LLaVA-1.5.
        return _pad(image, side or max(width, height), resample, tuple(int(255 * mean) for mean in image_mean))
    return image if side in (None, image.width) else image.resize((side, side), Image.Resampling(resample))
