"""
Compares the forward time of the student's encoder with that of transformers' CLIP with the same weights, and the time
of the batched pass in training with the time of single passes. The compared functions run alternately, after a check
that their outputs are equal.

    python benchmarks/vision_tower.py --size base --batch_size 4
"""

import argparse
import tempfile
from collections.abc import Callable

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from hawaii.benchmarks.alternating import compare, measure
from hawaii.modeling_hawaii.conversion.clip import convert_clip


# CLIP ViT-B/16, CLIP ViT-L/14-336, and a tiny size for the test of this file.
SIZES = {
    "base": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12}
    | {"image_size": 224, "patch_size": 16},
    "large": {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24}
    | {"image_size": 336, "patch_size": 14},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_hidden_layers": 3}
    | {"image_size": 32, "patch_size": 8},
}
NUM_TEACHERS = 3


def report(name: str, ours: Callable, theirs: Callable, rounds: int) -> None:
    """Prints the ratio of the medians of `ours` and `theirs`, and the range of the ratios of single rounds."""
    torch.testing.assert_close(ours(), theirs(), rtol=1e-3, atol=1e-3)
    ratio, least, largest = compare(measure([ours, theirs], rounds))
    print(f"{name}: {ratio:.3f} (of {rounds} pairs {least:.3f} to {largest:.3f})")


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--batch_size", type=int, default=4, metavar="N")
    parser.add_argument("--rounds", type=int, default=7, metavar="N")
    arguments = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    clip = CLIPVisionModel(CLIPVisionConfig(**SIZES[arguments.size])).eval()
    with tempfile.TemporaryDirectory() as folder:
        clip.save_pretrained(folder)
        tower = convert_clip(folder, num_teacher_adapters=NUM_TEACHERS).model.to(device)
    clip = clip.to(device)
    pixel_values = torch.randn(arguments.batch_size, 3, *[SIZES[arguments.size]["image_size"]] * 2, device=device)
    print(f"{arguments.size}, {arguments.batch_size} images, {device}, {torch.get_num_threads()} threads")

    report(
        "Encoder of HAWAII / all layers of CLIP as in LLaVA",
        lambda: tower(pixel_values).last_hidden_state,
        lambda: clip(pixel_values, output_hidden_states=True).hidden_states[-2],
        arguments.rounds,
    )
    adapters = torch.arange(-1, NUM_TEACHERS, device=device)
    repeated = pixel_values.repeat(1 + NUM_TEACHERS, 1, 1, 1)
    adapter_per_image = adapters.repeat_interleave(arguments.batch_size)
    report(
        "The routed and three forced passes in one batch / one after the other",
        lambda: tower(repeated, adapters=adapter_per_image).last_hidden_state,
        lambda: torch.cat(
            [
                tower(pixel_values, adapters=part).last_hidden_state
                for part in adapter_per_image.split(arguments.batch_size)
            ]
        ),
        arguments.rounds,
    )


if __name__ == "__main__":
    main()
