"""What only a GPU shows of a training step: the share of its peak that the step reaches, memory, and waits."""

import time
import warnings
from collections.abc import Iterator

import torch
from torch.utils.flop_counter import FlopCounterMode

from hawaii.benchmarks.measuring.comparison import Comparison
from hawaii.benchmarks.training.step import Step
from hawaii.training.counting.gpus import find_peak


MFU_GOAL = 0.45  # in stage 1
NUM_STEPS = 10


def count_waits(step: Step) -> int:
    """Counts how often a step waits for the GPU."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step.run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(warning.message) for warning in caught)


def peak_gib(step: Step) -> float:
    """The peak memory of a step in GiB, with the weights that it needs but without those of other models."""
    own = [*step.module.parameters(), *(weight for teacher in step.teachers for weight in teacher.model.parameters())]
    others = torch.cuda.memory_allocated() - sum(weight.nbytes for weight in own)
    torch.cuda.reset_peak_memory_stats()
    step.run()
    return (torch.cuda.max_memory_allocated() - others) / 2**30


def tera_per_second(step: Step) -> float:
    """Operations of a step per second, in TFLOP/s."""
    with FlopCounterMode(display=False) as counter:
        step.run()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(NUM_STEPS):
        step.run()
    torch.cuda.synchronize()
    return NUM_STEPS * counter.get_total_flops() / (time.perf_counter() - start) / 1e12


def measure_on_gpu(stage: str, ours: Step, theirs: Step) -> Iterator[Comparison]:
    """Compares the steps of HAWAII and of LLaVA, and HAWAII's with what the GPU can do."""
    peak = find_peak(torch.cuda.get_device_name())
    if peak is not None:
        goal = {"at_least": MFU_GOAL} if stage == "stage 1" else {}
        speed = [(tera_per_second(ours), peak / 1e12)]
        yield Comparison(f"{stage}: operations of a step", "HAWAII", "the GPU's peak", speed, "TFLOP/s", **goal)
    yield Comparison(f"{stage}: peak memory of a step", "HAWAII", "LLaVA", [(peak_gib(ours), peak_gib(theirs))], "GiB")
    subject, waits = f"{stage}: waits for the GPU", count_waits(ours)
    yield Comparison(subject, "HAWAII", "LLaVA", [(waits, count_waits(theirs))], "")
    yield Comparison(subject, "HAWAII", "none", [(waits, 0)], "", at_most=1.0)
