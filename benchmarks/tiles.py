"""
Compares the seconds of a HAWAII with tiles with those of transformers' LLaVA-NeXT: of the features of images, of the
forward pass of a prompt with them, and of `generate`. The HAWAII has LLaVA-NeXT's weights and new adapters, which add
nothing yet. The compared functions run alternately, after a check that their outputs are equal. On CPUs, seconds are
those of this process.

    python benchmarks/tiles.py

LLaVA-NeXT runs a layer of its encoder that nothing reads. `--feature_layer -1` gives it no such layer, and with
`--adapters 0` both compute the same.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from hawaii.benchmarks.alternating import compare, measure
from hawaii.configuration.tiles_hawaii import count_image_tokens, count_tiles
from hawaii.modeling_hawaii.conversion.llava import convert_llava
from hawaii.tests.tiny.llava import make_llava_next
from hawaii.tests.tiny.tiles import make_prompts, pad_tiles


# The widths of CLIP ViT-B/16 and few layers, of which the language model reads the last; and a tiny size for the test.
SIZES = {
    "base": (
        {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 4}
        | {"image_size": 112, "patch_size": 14},
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
    "a high image": [(3.0, 0.8)],
    "a square image": [(2.0, 2.0)],
    "four images of different grids": [(0.9, 3.0), (2.0, 2.0), (3.0, 0.8), (0.5, 0.9)],
}
NEW_TOKENS = 8


def report(name: str, ours: Callable, theirs: Callable, rounds: int, clock: Callable[[], float]) -> None:
    """Prints the ratio of the medians of `ours` and `theirs`, and that of the least seconds."""
    torch.testing.assert_close(ours(), theirs(), rtol=1e-3, atol=1e-3)
    seconds = measure([ours, theirs], rounds, clock)
    ratio, least, largest = compare(seconds)
    fastest = [1000 * min(times) for times in zip(*seconds)]
    print(
        f"{name}: {ratio:.3f} (of {rounds} pairs {least:.3f} to {largest:.3f}); least milliseconds {fastest[0]:.1f} / "
        f"{fastest[1]:.1f} = {fastest[0] / fastest[1]:.3f}",
        flush=True,
    )


def compare_batch(name: str, sizes: list[list[int]], ours: Any, theirs: Any, rounds: int) -> None:
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
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    for part, function in compared.items():
        report(
            f"{name}, {part}",
            partial(function, ours, our_images),
            partial(function, theirs, their_images),
            rounds,
            clock,
        )


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--feature_layer", type=int, choices=(-2, -1), default=-2)
    parser.add_argument("--adapters", type=int, default=3, metavar="N", help="teachers' and general ones, N of each")
    parser.add_argument("--rounds", type=int, default=15, metavar="N")
    arguments = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    vision, text = SIZES[arguments.size]
    side = vision["image_size"]
    vision = {**vision, "num_hidden_layers": vision["num_hidden_layers"] - 1 - arguments.feature_layer}
    pinpoints = [[side * rows, side * columns] for rows, columns in GRIDS]
    fields = {"image_grid_pinpoints": pinpoints, "vision_feature_layer": arguments.feature_layer}
    theirs = make_llava_next(vision, text, **fields)
    with tempfile.TemporaryDirectory() as folder:
        adapters = {f"num_{kind}_adapters": arguments.adapters for kind in ("teacher", "general")}
        theirs.save_pretrained(folder)
        ours = convert_llava(folder, **adapters).model.to(device)
    theirs.to(device)
    print(f"HAWAII / LLaVA-NeXT, {arguments.size}, {device}, {torch.get_num_threads()} threads")
    for name, shapes in BATCHES.items():
        sizes = [[round(side * length) for length in shape] for shape in shapes]
        compare_batch(name, sizes, ours, theirs, arguments.rounds)


if __name__ == "__main__":
    main()
