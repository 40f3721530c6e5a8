"""LLaVA-NeXT's processor at a tiny size, prompts with tiles, and tiles put together by plain loops."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from transformers import LlavaNextImageProcessorPil, LlavaNextProcessor

from hawaii.tests.tiny.models import PINPOINTS, make_tokenizer


# Of tiles of 336 pixels, as in the published checkpoints.
PUBLISHED_PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
# Height and width of a wide, a high and a square picture: 2, 3 and 4 tiles, without the whole picture.
SIZES = [[20, 50], [47, 12], [30, 31]]


def make_llava_next_processor(
    tile_size: int = 16, patch_size: int = 4, pinpoints: Sequence[Sequence[int]] = PINPOINTS
) -> LlavaNextProcessor:
    side = {"height": tile_size, "width": tile_size}
    image_processor = LlavaNextImageProcessorPil(
        size=side, crop_size=side, image_grid_pinpoints=[list(pair) for pair in pinpoints]
    )
    return LlavaNextProcessor(
        image_processor=image_processor,
        tokenizer=make_tokenizer(),
        patch_size=patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def pad_tiles(pixel_values: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """The squares of each image as LLaVA-NeXT's processor returns them, `(num_images, max_num_tiles, ...)`."""
    padded = pixel_values.new_zeros(len(counts), max(counts), *pixel_values.shape[1:])
    for tiles, image in zip(pixel_values.split(counts), padded):
        image[: len(tiles)] = tiles
    return padded


def choose_grid(size: Sequence[int], pinpoints: Sequence[Sequence[int]]) -> tuple[int, int]:
    """The pinpoint in which most pixels of a picture of this height and width are left; the smallest of equal ones."""
    height, width = size

    def rank(pinpoint: Sequence[int]) -> tuple[int, int]:
        scale = min(pinpoint[1] / width, pinpoint[0] / height)
        shown = min(int(height * scale) * int(width * scale), height * width)
        return shown, -pinpoint[0] * pinpoint[1]

    best = max(pinpoints, key=rank)
    return best[0], best[1]


def pack_naively(
    squares: torch.Tensor,
    image_sizes: Sequence[Sequence[int]],
    pinpoints: Sequence[Sequence[int]],
    tile_size: int,
    newline: torch.Tensor,
) -> list[torch.Tensor]:
    """
    Features of each picture, from those of its squares: the whole picture, and then the map of its tiles without the
    padding, each of whose rows ends with a newline.

    Args:
        squares (`torch.Tensor` of shape `(num_tiles, num_patches, hidden_size)`):
            Features of all squares of all pictures.
        image_sizes, pinpoints, tile_size:
            As for `find_tile_grids`.
        newline (`torch.Tensor` of shape `(hidden_size,)`):
            The feature of a newline.
    """
    side, rest, packed = round(squares.shape[1] ** 0.5), squares, []
    for height, width in image_sizes:
        rows, columns = (length // tile_size for length in choose_grid((height, width), pinpoints))
        whole, tiles, rest = rest[0], rest[1 : 1 + rows * columns], rest[1 + rows * columns :]
        bands = [
            torch.cat([tile.view(side, side, -1) for tile in tiles[row * columns : (row + 1) * columns]], dim=1)
            for row in range(rows)
        ]
        cells = torch.cat(bands)  # (rows * side, columns * side, D)
        if width / height > columns / rows:
            padding = (len(cells) - int(round(height * (columns * side / width), 7))) // 2
            cells = cells[padding : len(cells) - padding]
        else:
            padding = (cells.shape[1] - int(round(width * (rows * side / height), 7))) // 2
            cells = cells[:, padding : cells.shape[1] - padding]
        lines = [torch.cat([row, newline[None]]) for row in cells]
        packed.append(torch.cat([whole, *lines]))
    assert not len(rest)
    return packed


def make_prompts(
    parts: Sequence[Sequence[int | list[int]]], num_tokens: Sequence[int], image_token: int
) -> dict[str, torch.Tensor]:
    """
    A batch of prompts, padded on the left.

    Args:
        parts (`list`):
            For each prompt, lists of words and indices of images.
        num_tokens (`list[int]`):
            Number of tokens of each image.
        image_token (`int`):
            The image token.
    """
    prompts = []
    for prompt in parts:
        expanded = [[image_token] * num_tokens[part] if isinstance(part, int) else part for part in prompt]
        prompts.append(torch.tensor([2, *(token for part in expanded for token in part)]))
    length = max(map(len, prompts))
    return {
        "input_ids": torch.stack([F.pad(prompt, (length - len(prompt), 0)) for prompt in prompts]),
        "attention_mask": torch.stack([F.pad(torch.ones_like(p), (length - len(p), 0)) for p in prompts]),
    }
