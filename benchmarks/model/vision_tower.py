"""
Compares the forward time of the student's encoder with that of transformers' CLIP with the same weights, and the time
of the batched pass in training with the time of single passes. The compared functions run alternately, after a check
that their outputs are equal.

    python benchmarks/model/vision_tower.py --size base --batch_size 4
"""

import itertools
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from hawaii.benchmarks.measuring.command import find_device, make_parser, print_comparisons, process_clock
from hawaii.benchmarks.measuring.comparison import Comparison, check_equal, compare, time_ways
from hawaii.benchmarks.measuring.sizes import CLIP_BASE, CLIP_LARGE
from hawaii.modeling_hawaii.conversion.clip import convert_clip
from hawaii.modeling_hawaii.vision_hawaii import HawaiiVisionModel


SIZES = {
    "base": CLIP_BASE,
    "large": CLIP_LARGE,
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_hidden_layers": 3}
    | {"image_size": 32, "patch_size": 8},
}
NUM_TEACHERS = 3


def make_towers(size: str, batch_size: int) -> tuple[HawaiiVisionModel, CLIPVisionModel, torch.Tensor]:
    """A student's encoder with new adapters, the CLIP that it starts from, and random images."""
    device = find_device()
    torch.manual_seed(0)
    clip: Any = CLIPVisionModel(CLIPVisionConfig(**SIZES[size])).eval()
    with tempfile.TemporaryDirectory() as folder:
        clip.save_pretrained(folder)
        tower = convert_clip(folder, num_teacher_adapters=NUM_TEACHERS).model
    pixel_values = torch.randn(batch_size, 3, *[SIZES[size]["image_size"]] * 2, device=device)
    return tower.to(device), clip.to(device), pixel_values


@torch.no_grad()
def measure_tower(size: str = "large", batch_size: int = 1, rounds: int = 7) -> Iterator[Comparison]:
    """
    Compares the features of random images; `size` is one of `SIZES`. On a GPU the results are equal in float32, and
    the seconds are those of bfloat16, without and with `torch.compile`.
    """
    tower, clip, pixel_values = make_towers(size, batch_size)

    def ways_of(ours: Callable, theirs: Callable, images: torch.Tensor) -> dict[str, Callable]:
        return {
            "HAWAII": lambda: ours(images).last_hidden_state,
            f"all {clip.config.num_hidden_layers} layers of CLIP": lambda: theirs(
                images, output_hidden_states=True
            ).hidden_states[-2],
        }

    subject, clock = "the encoder's features", process_clock(pixel_values.device)
    ways = ways_of(tower, clip, pixel_values)
    check_equal(ways)
    if pixel_values.is_cuda:
        check_equal(ways_of(torch.compile(tower), torch.compile(clip), pixel_values))
        ways = ways_of(tower.bfloat16(), clip.bfloat16(), pixel_values.bfloat16())
    yield time_ways(subject, ways, rounds, clock, at_most=1.0)
    if pixel_values.is_cuda:
        compiled = ways_of(torch.compile(tower), torch.compile(clip), pixel_values.bfloat16())
        for run in compiled.values():
            run()  # compiles
        yield time_ways(f"{subject}, compiled", compiled, rounds, clock, at_most=1.0)


@torch.no_grad()
def measure_passes(size: str = "base", batch_size: int = 1, rounds: int = 7) -> Iterator[Comparison]:
    """Compares the passes of a training step, without gradients, on random images."""
    tower, _, pixel_values = make_towers(size, batch_size)
    repeated = pixel_values.repeat(1 + NUM_TEACHERS, 1, 1, 1)
    adapters = torch.arange(-1, NUM_TEACHERS, device=pixel_values.device).repeat_interleave(batch_size)
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
    )


def main() -> None:
    parser = make_parser(__doc__, batch_size=4, rounds=7)
    parser.add_argument("--size", choices=SIZES, default="base")
    arguments = parser.parse_args()
    options = vars(arguments)
    print_comparisons(itertools.chain(measure_tower(**options), measure_passes(**options)), arguments)


if __name__ == "__main__":
    main()
