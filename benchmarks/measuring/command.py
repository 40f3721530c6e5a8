"""The command of a benchmark that compares two ways to compute the same."""

import argparse
import time
from collections.abc import Callable, Iterable

import torch

from .comparison import Comparison


def find_device() -> torch.device:
    """The first GPU if there is one, otherwise the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def process_clock(device: torch.device) -> Callable[[], float]:
    """On a CPU the seconds of this process, which do not count other programs; elsewhere those of the wall."""
    return time.process_time if device.type == "cpu" else time.perf_counter


def make_parser(description: str | None, **numbers: int | tuple[int, str]) -> argparse.ArgumentParser:
    """Makes a parser for whole numbers, each with its default, or its default and a text about it."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, number in numbers.items():
        default, text = number if isinstance(number, tuple) else (number, None)
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=text)
    return parser


def print_comparisons(comparisons: Iterable[Comparison], arguments: argparse.Namespace) -> None:
    """Prints each comparison as soon as it is measured, after a line that describes the run."""
    torch.set_num_threads(1)  # the seconds of several threads would be summed
    print(", ".join(f"{name} {value}" for name, value in vars(arguments).items()))
    for comparison in comparisons:
        print(comparison, flush=True)
