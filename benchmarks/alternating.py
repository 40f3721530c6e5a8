"""Times functions that run alternately, so that other programs on the machine slow them down equally."""

import statistics
import time
from collections.abc import Callable, Sequence

import torch


def measure(
    functions: Sequence[Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> list[tuple[float, ...]]:
    """
    Runs the functions one after the other, `rounds` times.

    Args:
        functions (`Sequence[Callable]`):
            Functions without arguments.
        rounds (`int`):
            Number of rounds.
        clock (`Callable`, *optional*, defaults to `time.perf_counter`):
            The clock; `time.process_time` does not count other programs.

    Returns:
        For each round, the seconds of each function until its result is available.
    """

    def seconds(function: Callable[[], object]) -> float:
        start = clock()
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return clock() - start

    return [tuple(map(seconds, functions)) for _ in range(rounds)]


def compare(pairs: Sequence[tuple[float, ...]]) -> tuple[float, float, float]:
    """Returns the ratio of the medians of two functions, and the smallest and the largest ratio of a single round."""
    first, second = (statistics.median(times) for times in zip(*pairs))
    ratios = [one / other for one, other in pairs]
    return first / second, min(ratios), max(ratios)
