"""Two ways to compute the same, run alternately so that other programs on the machine slow both down equally."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch


Result = TypeVar("Result")


def _divide(first: float, second: float) -> float:
    if second == 0:
        return math.inf if first else 1.0
    return first / second


@dataclass(frozen=True)
class Comparison:
    """
    What two ways to compute the same cost.

    Args:
        subject (`str`):
            What both compute.
        first, second (`str`):
            The two ways. The ratio is the first one's cost divided by the second one's.
        pairs (`Sequence[tuple[float, float]]`):
            The costs of both in each round, at least one. Counts, such as floating-point operations, have one round.
        unit (`str`, *optional*, defaults to `"ms"`):
            Of the costs.
        at_most, at_least (`float`, *optional*):
            The goal of the ratio.
    """

    subject: str
    first: str
    second: str
    pairs: Sequence[tuple[float, float]]
    unit: str = "ms"
    at_most: float | None = None
    at_least: float | None = None

    @property
    def medians(self) -> tuple[float, float]:
        """The median cost of each way."""
        first, second = (statistics.median(costs) for costs in zip(*self.pairs))
        return first, second

    @property
    def ratio(self) -> float:
        """The ratio of the medians; 1 if both are 0, infinite if only the second is."""
        return _divide(*self.medians)

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest ratio of one round."""
        ratios = [_divide(first, second) for first, second in self.pairs]
        return min(ratios), max(ratios)

    @property
    def is_met(self) -> bool | None:
        """Whether the ratio, rounded as it is shown, reaches the goal; `None` without a goal."""
        if self.at_most is not None:
            return round(self.ratio, 2) <= self.at_most
        return None if self.at_least is None else round(self.ratio, 2) >= self.at_least

    def __str__(self) -> str:
        costs = f"{show(self.medians[0])} / {show(self.medians[1])} {self.unit}"
        if len(self.pairs) > 1:
            low, high = self.range
            costs += f", medians of {len(self.pairs)} rounds whose ratios are {low:.3f} to {high:.3f}"
        return f"{self.subject}, {self.first} / {self.second}: {self.ratio:.3f} ({costs})"


def show(cost: float) -> str:
    """A cost with three digits, or all of a whole number with more."""
    return f"{cost:,.0f}" if abs(cost) >= 100 else f"{cost:.3g}"


def run_in_turn(functions: Sequence[Callable[[], Result]], rounds: int) -> list[tuple[Result, ...]]:
    """
    Runs the functions one after the other, `rounds` times, in every second round in reverse order, so that a machine
    that becomes slower or faster favours none. Returns the results of each round, in the order of the functions.
    """
    results = []
    for number in range(rounds):
        order = -1 if number % 2 else 1
        results.append(tuple([function() for function in functions[::order]][::order]))
    return results


def measure(
    functions: Sequence[Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> list[tuple[float, ...]]:
    """
    Times the functions in turn, see [`run_in_turn`].

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

    return run_in_turn([partial(seconds, function) for function in functions], rounds)


def time_ways(
    subject: str,
    ways: Mapping[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    **goal: float,
) -> Comparison:
    """
    Measures the milliseconds of two ways.

    Args:
        subject (`str`):
            What both compute.
        ways (`Mapping[str, Callable]`):
            Two functions without arguments by their names.
        rounds (`int`), clock (`Callable`):
            As for [`measure`].
        goal (`float`):
            `at_most` or `at_least`, see [`Comparison`].
    """
    first, second = ways
    pairs = [(1e3 * one, 1e3 * other) for one, other in measure(list(ways.values()), rounds, clock)]
    return Comparison(subject, first, second, pairs, **goal)


def check_equal(ways: Mapping[str, Callable[[], object]], rtol: float = 1e-3, atol: float = 1e-3) -> None:
    """
    Checks that two functions return equal tensors, or lists of them. Whole numbers must be equal exactly.

    Raises:
        AssertionError: the results differ by more than the tolerance.
    """
    first, second = (run() for run in ways.values())
    is_exact = isinstance(first, torch.Tensor) and not first.is_floating_point()
    torch.testing.assert_close(first, second, **({"rtol": 0, "atol": 0} if is_exact else {"rtol": rtol, "atol": atol}))


def compare(
    subject: str,
    ways: Mapping[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    rtol: float = 1e-3,
    atol: float = 1e-3,
    **goal: float,
) -> Comparison:
    """
    Measures the milliseconds of two ways, after a check that their results are equal, which also warms both up.
    Arguments as for [`time_ways`] and [`check_equal`].

    Raises:
        AssertionError: the results differ.
    """
    check_equal(ways, rtol, atol)
    return time_ways(subject, ways, rounds, clock, **goal)
