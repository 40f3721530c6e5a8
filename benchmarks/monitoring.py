"""
Compares the time of a training step with that of the same step without monitoring (throughput, FLOPs and the routers'
load). Both run alternately in one process, from the same weights, after a check that their losses are equal.

    python benchmarks/monitoring.py --rounds 20
"""

import argparse
import copy
import statistics

import torch
from accelerate import Accelerator

from hawaii.benchmarks.alternating import compare, measure
from hawaii.tests.tiny.training import TEACHER_GRIDS, make_module
from hawaii.training.counting.step import BatchShape, make_features
from hawaii.training.monitoring.monitor import Monitor


SIZES = {
    "small": {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 8},
    "tiny": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
}
LOGGING_STEPS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--batch_size", type=int, default=8, metavar="N")
    parser.add_argument("--rounds", type=int, default=20, metavar="N")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    accelerator = Accelerator()
    plain = make_module(vision=SIZES[arguments.size], text=SIZES[arguments.size]).to(accelerator.device).train()
    monitored = copy.deepcopy(plain)
    monitor = Monitor(monitored, [], accelerator)
    shape = BatchShape(arguments.batch_size, arguments.batch_size, 64, 8, 32 * arguments.batch_size)
    batch = {name: value.to(accelerator.device) for name, value in shape.make(plain.student).items()}
    features = [
        grid.to(accelerator.device) for grid in make_features(list(TEACHER_GRIDS.values()), len(batch["image_index"]))
    ]

    def step(module: torch.nn.Module) -> torch.Tensor:
        loss, _ = module(features, batch)
        loss.backward()
        module.zero_grad()
        return loss.detach()

    def monitored_step(number: int) -> torch.Tensor:
        monitor.expect(batch, float(number))
        loss = step(monitored)
        if number % LOGGING_STEPS == LOGGING_STEPS - 1:
            monitor.summarize(float(number))
        return loss

    torch.testing.assert_close(monitored_step(0), step(plain), rtol=0, atol=0)
    numbers = iter(range(arguments.rounds))
    pairs = measure([lambda: monitored_step(next(numbers)), lambda: step(plain)], arguments.rounds)
    ratio, least, largest = compare(pairs)
    print(
        f"Step with monitoring / without: {ratio:.3f} (of {len(pairs)} pairs {least:.3f} to {largest:.3f}; "
        f"{statistics.median(theirs for _, theirs in pairs) * 1000:.1f} ms)"
    )


if __name__ == "__main__":
    main()
