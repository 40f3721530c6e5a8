"""
Compares the time of ten training steps, of which the last one logs, with that of the same steps without monitoring
(throughput, FLOPs and the routers' load). Both run alternately in one process, from the same weights, after a check
that their losses are equal.

    python benchmarks/training/monitoring.py --rounds 20
"""

import copy
import itertools
from collections.abc import Iterator

import torch
from accelerate import Accelerator

from hawaii.benchmarks.measuring.command import make_parser, print_comparisons, process_clock
from hawaii.benchmarks.measuring.comparison import Comparison, compare
from hawaii.tests.tiny.training import TEACHER_GRIDS, make_module
from hawaii.training.counting.step import BatchShape, make_features
from hawaii.training.monitoring.monitor import Monitor


SIZES = {
    "small": {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 8},
    "tiny": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
}
LOGGING_STEPS = 10


def measure_monitoring(size: str = "small", batch_size: int = 8, rounds: int = 20) -> Iterator[Comparison]:
    """Compares steps on random features; `size` is one of `SIZES`."""
    torch.manual_seed(0)
    accelerator = Accelerator()
    plain = make_module(vision=SIZES[size], text=SIZES[size]).to(accelerator.device).train()
    monitored = copy.deepcopy(plain)
    monitor = Monitor(monitored, [], accelerator)
    shape = BatchShape(batch_size, batch_size, 64, 8, 32 * batch_size)
    batch = {name: value.to(accelerator.device) for name, value in shape.make(plain.student).items()}
    features = [
        grid.to(accelerator.device) for grid in make_features(list(TEACHER_GRIDS.values()), len(batch["image_index"]))
    ]

    def step(module: torch.nn.Module) -> torch.Tensor:
        loss, _ = module(features, batch)
        loss.backward()
        module.zero_grad()
        return loss.detach()

    def run_monitored() -> list[torch.Tensor]:
        losses = []
        for _ in range(LOGGING_STEPS):
            monitor.expect(batch, float(next(numbers)))
            losses.append(step(monitored))
        monitor.summarize(float(next(numbers)))
        return losses

    numbers = itertools.count()
    ways = {"with monitoring": run_monitored, "without": lambda: [step(plain) for _ in range(LOGGING_STEPS)]}
    subject = f"{LOGGING_STEPS} training steps, of which the last one logs"
    yield compare(subject, ways, rounds, process_clock(accelerator.device), rtol=0, atol=0)


def main() -> None:
    parser = make_parser(__doc__, batch_size=8, rounds=20)
    parser.add_argument("--size", choices=SIZES, default="small")
    arguments = parser.parse_args()
    print_comparisons(measure_monitoring(**vars(arguments)), arguments)


if __name__ == "__main__":
    main()
