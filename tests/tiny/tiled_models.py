"""Tiny models that see pictures in tiles, and pictures with one bright cell."""

from PIL import Image

from hawaii import HawaiiForConditionalGeneration, HawaiiProcessor
from hawaii.tests.tiny.models import PINPOINTS, make_model, make_processor


# Width and height of pictures, and cells of their maps, each as row and column.
SIZES = {"wide": (32, 16), "tall": (16, 32), "square": (32, 32), "padded": (32, 24), "strip": (48, 8)}
CELLS = {"wide": (4, 8), "tall": (8, 4), "square": (8, 8), "padded": (6, 8), "strip": (2, 12)}


def make_tiled_processor(**kwargs) -> HawaiiProcessor:
    """Cuts tiles of 16 pixels with 4 x 4 patches; arguments as for [`make_processor`]."""
    return make_processor(**{"image_grid_pinpoints": PINPOINTS, **kwargs})


def make_tiled_model(**kwargs) -> HawaiiForConditionalGeneration:
    """Arguments as for [`make_config`]."""
    return make_model(image_grid_pinpoints=PINPOINTS, text={"max_position_embeddings": 1024}, **kwargs)


def mark_cell(size: tuple[int, int], row: int, column: int) -> Image.Image:
    """A black picture with a white square of 4 x 4 pixels."""
    picture = Image.new("RGB", size)
    picture.paste("white", (4 * column, 4 * row, 4 * column + 4, 4 * row + 4))
    return picture
