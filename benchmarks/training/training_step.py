"""
Compares a training step of HAWAII with one of LLaVA, by part and stage: with teachers that run in every step, and
without their passes, as with features from a cache. Both train students with the same weights, alternately, after a
check that their text losses are equal. A second comparison is that of one batch for all passes of the encoder with one
batch for each pass. On CPUs, seconds are those of this process. A step has no optimizer, whose seconds depend on the
number of weights only.

    python benchmarks/training/training_step.py --size small

On a GPU, steps compute in bfloat16; the share of its peak that a step reaches, memory, and how often a step waits for
the GPU are measured, too.
"""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from hawaii.benchmarks.measuring.command import find_device, make_parser, print_comparisons, process_clock
from hawaii.benchmarks.measuring.comparison import Comparison, check_equal, run_in_turn, time_ways
from hawaii.benchmarks.training.gpu_step import measure_on_gpu
from hawaii.benchmarks.training.step import Step, train_parts
from hawaii.benchmarks.training.step_models import SIZES, make_batch, make_modules, make_teachers


STAGES = {
    "stage 1": ["adapters", "routers", "projector", "projections"],
    "stage 2": ["vision_tower", "adapters", "routers", "projector", "language_model", "projections"],
}


def text_of(step: Step) -> torch.Tensor:
    """The language model's loss: new adapters add nothing, so it is the same for both methods."""
    return step.forward(step.teacher_features())[1]["text"].detach()


def check_exactly(steps: dict[str, Step], ways: dict[str, Callable]) -> None:
    """Checks that ways are equal, in float32 on a GPU, too."""
    for step in steps.values():
        step.is_exact = True
    check_equal(ways)
    for step in steps.values():
        step.is_exact = False


def measure_step(size: str = "small", batch_size: int = 4, rounds: int = 7) -> Iterator[Comparison]:
    """Compares steps on random images and tokens; `size` is one of `SIZES`."""
    device = find_device()
    torch.manual_seed(0)
    teachers = make_teachers(size, device)
    modules = make_modules(size, teachers, device)
    batch = make_batch(modules["hawaii"], batch_size, device)
    side = max(teacher.image_size for teacher in teachers)
    images = torch.randint(256, (batch_size, 3, side, side), dtype=torch.uint8, device=device)
    steps = {
        "hawaii": Step(modules["hawaii"], teachers, batch, images),
        "llava": Step(modules["llava"], [], batch, images),
    }
    for stage, parts in STAGES.items():
        for module in modules.values():
            train_parts(module, parts)
        check_exactly(steps, {name: partial(text_of, step) for name, step in steps.items()})
        for step in steps.values():
            step.run()  # warms it up
        pairs: dict[str, list[tuple[float, float]]] = {}
        for seconds in run_in_turn([step.seconds for step in steps.values()], rounds):
            ours, theirs = ({part: 1e3 * value for part, value in each.items()} for each in seconds)
            whole = sum(theirs.values())
            cached = ours["forward"] + ours["backward"]
            for name, pair in {
                "a step with teachers": (cached + ours["teachers"], whole),
                "a step without the teachers' passes, as with a cache": (cached, whole),
                "forward pass": (ours["forward"], theirs["forward"]),
                "backward pass": (ours["backward"], theirs["backward"]),
            }.items():
                pairs.setdefault(name, []).append(pair)
        for name, values in pairs.items():
            yield Comparison(f"{stage}: {name}", "HAWAII", "LLaVA", values)
        if device.type == "cuda":
            yield from measure_on_gpu(stage, steps["hawaii"], steps["llava"])
    objective: Any = modules["hawaii"].objective
    one_by_one = copy.copy(objective.options)
    one_by_one.sequential_passes = True
    options = {"one batch": objective.options, "one after the other": one_by_one}
    features = steps["hawaii"].teacher_features()
    learning = [weight for weight in modules["hawaii"].parameters() if weight.requires_grad]

    def run_passes(name: str) -> list[torch.Tensor]:
        objective.options = options[name]
        loss, _ = steps["hawaii"].forward(features)
        gradients = torch.autograd.grad(loss, learning, allow_unused=True)
        return [loss.detach(), *(gradient for gradient in gradients if gradient is not None)]

    ways: dict[str, Callable] = {name: partial(run_passes, name) for name in options}
    subject = "stage 2: a step without the teachers' passes, with the encoder's passes in one batch or several"
    check_exactly(steps, ways)
    yield time_ways(subject, ways, rounds, process_clock(device))


def main() -> None:
    parser = make_parser(__doc__, batch_size=4, rounds=7)
    parser.add_argument("--size", choices=SIZES, default="small")
    arguments = parser.parse_args()
    print_comparisons(measure_step(**vars(arguments)), arguments)


if __name__ == "__main__":
    main()
