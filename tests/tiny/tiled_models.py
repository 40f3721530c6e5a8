"""Tiny models that see pictures in tiles, and pictures with one bright cell."""

from pathlib import Path

import torch
from PIL import Image

from hawaii import HawaiiForConditionalGeneration, HawaiiProcessor
from hawaii.processing.chat_templates import load_chat_template
from hawaii.processing.image_processing_hawaii import HawaiiImageProcessor
from hawaii.tests.tiny.models import make_model, make_tokenizer


PINPOINTS = [[16, 32], [32, 16], [32, 32], [16, 48]]  # tiles of 16 pixels with 4 x 4 patches
# Width and height of pictures, and cells of their maps, each as row and column.
SIZES = {"wide": (32, 16), "tall": (16, 32), "square": (32, 32), "padded": (32, 24), "strip": (48, 8)}
CELLS = {"wide": (4, 8), "tall": (8, 4), "square": (8, 8), "padded": (6, 8), "strip": (2, 12)}


def make_tiled_processor(**kwargs) -> HawaiiProcessor:
    size = {"height": 16, "width": 16}
    image_processor = HawaiiImageProcessor(size=size, crop_size=size, image_grid_pinpoints=PINPOINTS, **kwargs)
    return HawaiiProcessor(image_processor, make_tokenizer(), 4, load_chat_template("vicuna_v1"))


def make_tiled_model(**kwargs) -> HawaiiForConditionalGeneration:
    text = {"max_position_embeddings": 1024, **kwargs.pop("text", {})}
    return make_model(image_grid_pinpoints=PINPOINTS, text=text, **kwargs)


def save_tiled_folder(folder: Path) -> Path:
    """A published folder with random weights."""
    torch.manual_seed(0)
    make_tiled_model().save_pretrained(folder)
    make_tiled_processor().save_pretrained(folder)
    return folder


def mark_cell(size: tuple[int, int], row: int, column: int) -> Image.Image:
    """A black picture with a white square of 4 x 4 pixels."""
    picture = Image.new("RGB", size)
    picture.paste("white", (4 * column, 4 * row, 4 * column + 4, 4 * row + 4))
    return picture
