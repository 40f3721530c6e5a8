"""
Compares the forward time of the student's encoder with that of transformers' CLIP with the same weights, and the time
of the batched pass in training with the time of single passes. The compared functions run alternately, after a check
that their outputs are equal.

    python benchmarks/model/vision_tower.py --size base --batch_size 4
"""

import itertools
import tempfile
from collections.abc import Iterator
from typing import Any

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from hawaii.benchmarks.measuring.command import find_device, make_parser, print_comparisons, process_clock
from hawaii.benchmarks.measuring.comparison import Comparison, compare
from hawaii.modeling_hawaii.conversion.clip import convert_clip
from hawaii.modeling_hawaii.vision_hawaii import HawaiiVisionModel


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


def make_towers(size: str, batch_size: int) -> tuple[HawaiiVisionModel, CLIPVisionModel, torch.Tensor]:
    """A student's encoder with new adapters, the CLIP that it starts from, and random images."""
    device = find_device()
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(0)
    clip: Any = CLIPVisionModel(CLIPVisionConfig(**SIZES[size])).eval()
    with tempfile.TemporaryDirectory() as folder:
        clip.save_pretrained(folder)
        tower = convert_clip(folder, num_teacher_adapters=NUM_TEACHERS).model
    pixel_values = torch.randn(batch_size, 3, *[SIZES[size]["image_size"]] * 2, device=device, dtype=dtype)
    return tower.to(device, dtype), clip.to(device, dtype), pixel_values


@torch.no_grad()
def measure_tower(size: str = "large", batch_size: int = 1, rounds: int = 7) -> Iterator[Comparison]:
    """Compares the features of random images, on a GPU in bfloat16 and compiled, too; `size` is one of `SIZES`."""
    tower, clip, pixel_values = make_towers(size, batch_size)
    tolerance = 1e-3 if pixel_values.dtype == torch.float32 else 0.1
    ways = {"": (tower, clip)}
    if pixel_values.is_cuda:
        ways[", compiled"] = (torch.compile(tower), torch.compile(clip))
    for name, (ours, theirs) in ways.items():
        yield compare(
            f"the encoder's features{name}",
            {
                "HAWAII": lambda ours=ours: ours(pixel_values).last_hidden_state,
                f"all {clip.config.num_hidden_layers} layers of CLIP": lambda theirs=theirs: theirs(
                    pixel_values, output_hidden_states=True
                ).hidden_states[-2],
            },
            rounds,
            process_clock(pixel_values.device),
            rtol=tolerance,
            atol=tolerance,
            at_most=1.0,
        )


@torch.no_grad()
def measure_passes(size: str = "base", batch_size: int = 1, rounds: int = 7) -> Iterator[Comparison]:
    """Compares the passes of a training step, without gradients, on random images."""
    tower, _, pixel_values = make_towers(size, batch_size)
    repeated = pixel_values.repeat(1 + NUM_TEACHERS, 1, 1, 1)
    adapters = torch.arange(-1, NUM_TEACHERS, device=pixel_values.device).repeat_interleave(batch_size)
    tolerance = 1e-3 if pixel_values.dtype == torch.float32 else 0.1
    yield compare(
        f"the routed pass and {NUM_TEACHERS} with one teacher's adapters each",
        {
            "one batch": lambda: tower(repeated, adapters=adapters).last_hidden_state,
            "one after the other": lambda: torch.cat(
                [tower(pixel_values, adapters=part).last_hidden_state for part in adapters.split(batch_size)]
            ),
        },
        rounds,
        process_clock(pixel_values.device),
        rtol=tolerance,
        atol=tolerance,
    )


def main() -> None:
    parser = make_parser(__doc__, batch_size=4, rounds=7)
    parser.add_argument("--size", choices=SIZES, default="base")
    arguments = parser.parse_args()
    options = vars(arguments)
    print_comparisons(itertools.chain(measure_tower(**options), measure_passes(**options)), arguments)


if __name__ == "__main__":
    main()
