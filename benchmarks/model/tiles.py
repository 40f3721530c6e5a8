"""
Compares the seconds of a HAWAII with tiles with those of transformers' LLaVA-NeXT: of the features of images, of the
forward pass of a prompt with them, and of `generate`. The HAWAII has LLaVA-NeXT's weights and new adapters, which add
nothing yet. The compared functions run alternately, after a check that their outputs are equal. On CPUs, seconds are
those of this process.

    python benchmarks/model/tiles.py

LLaVA-NeXT runs a layer of its encoder that nothing reads. `--feature_layer -1` gives it no such layer, and with
`--adapters 0` both compute the same.
"""

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from hawaii.benchmarks.measuring.command import find_device, make_parser, print_comparisons, process_clock
from hawaii.benchmarks.measuring.comparison import Comparison, compare
from hawaii.benchmarks.measuring.sizes import CLIP_LARGE
from hawaii.configuration.tiles_hawaii import count_image_tokens, count_tiles
from hawaii.modeling_hawaii.conversion.llava import convert_llava
from hawaii.tests.tiny.llava import make_llava_next
from hawaii.tests.tiny.tiles import make_prompts, pad_tiles


# CLIP ViT-L/14 with small tiles, of whose 24 layers the language model reads the last but one; and a tiny size for the
# test.
SIZES = {
    "large": (
        {**CLIP_LARGE, "num_hidden_layers": 23, "image_size": 56},
        {"hidden_size": 512, "intermediate_size": 1408, "num_attention_heads": 8, "num_hidden_layers": 2}
        | {"num_key_value_heads": 8, "max_position_embeddings": 4096},
    ),
    "tiny": ({"image_size": 16, "patch_size": 4, "num_hidden_layers": 2}, {"max_position_embeddings": 512}),
}
# Rows and columns of tiles, as in the published checkpoints.
GRIDS = [(1, 2), (2, 1), (2, 2), (3, 1), (1, 3)]
# Height and width of the images of each batch, in tiles.
BATCHES = {
    "a wide image": [(0.9, 3.0)],
    "a square image": [(2.0, 2.0)],
    "four images of different grids": [(0.9, 3.0), (2.0, 2.0), (3.0, 0.8), (0.5, 0.9)],
}
NEW_TOKENS = 8


def compare_batch(name: str, sizes: list[list[int]], ours: Any, theirs: Any, rounds: int) -> Iterator[Comparison]:
    """Compares both models on random images of these heights and widths, each in one prompt."""
    config, device = ours.config, ours.device
    vision, pinpoints = config.vision_config, config.image_grid_pinpoints
    counts = count_tiles(sizes, pinpoints, vision.image_size)
    num_tokens = count_image_tokens(sizes, pinpoints, vision.image_size, vision.patches_a_side)
    prompts = make_prompts([[image, [5, 6, 7]] for image in range(len(sizes))], num_tokens, config.image_token_id)
    text = {key: value.to(device) for key, value in prompts.items()}
    pixel_values = torch.randn(sum(counts), 3, vision.image_size, vision.image_size, device=device)
    image_sizes = torch.tensor(sizes, device=device)
    our_images = {"pixel_values": pixel_values, "image_sizes": image_sizes}
    their_images = {"pixel_values": pad_tiles(pixel_values, counts), "image_sizes": image_sizes}
    options = {"do_sample": False, "max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS}
    compared: dict[str, Callable[[Any, dict], torch.Tensor]] = {
        "features": lambda model, images: torch.cat(list(model.get_image_features(**images).pooler_output)),
        "prefill": lambda model, images: model(**text, **images, logits_to_keep=1).logits,
        "generate": lambda model, images: model.generate(**text, **images, **options),
    }
    for part, function in compared.items():
        yield compare(
            f"{name}, {part}",
            {"HAWAII": partial(function, ours, our_images), "LLaVA-NeXT": partial(function, theirs, their_images)},
            rounds,
            process_clock(device),
            **({} if part == "generate" else {"at_most": 1.0}),
        )


@torch.no_grad()
def measure_tiles(
    size: str = "large", feature_layer: int = -2, adapters: int = 3, rounds: int = 15
) -> Iterator[Comparison]:
    """Compares on random images; `size` is one of `SIZES`, `adapters` the number of teachers' and of general ones."""
    device = find_device()
    torch.manual_seed(0)
    vision, text = SIZES[size]
    side = vision["image_size"]
    vision = {**vision, "num_hidden_layers": vision["num_hidden_layers"] - 1 - feature_layer}
    pinpoints = [[side * rows, side * columns] for rows, columns in GRIDS]
    fields = {"image_grid_pinpoints": pinpoints, "vision_feature_layer": feature_layer}
    theirs = make_llava_next(vision, text, **fields)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        numbers = {f"num_{kind}_adapters": adapters for kind in ("teacher", "general")}
        ours = convert_llava(folder, **numbers).model.to(device)
    theirs.to(device)
    for name, shapes in BATCHES.items():
        sizes = [[round(side * length) for length in shape] for shape in shapes]
        yield from compare_batch(name, sizes, ours, theirs, rounds)


def main() -> None:
    parser = make_parser(__doc__, adapters=(3, "teachers' and general ones, N of each"), rounds=15)
    parser.add_argument("--size", choices=SIZES, default="large")
    parser.add_argument("--feature_layer", type=int, choices=(-2, -1), default=-2)
    arguments = parser.parse_args()
    print_comparisons(measure_tiles(**vars(arguments)), arguments)


if __name__ == "__main__":
    main()
