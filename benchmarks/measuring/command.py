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
    """On a CPU the seconds of this process, which do not count other programs, elsewhere those of the wall."""
    return time.process_time if device.type == "cpu" else time.perf_counter


def make_parser(description: str | None, **defaults: int) -> argparse.ArgumentParser:
    """Makes a parser for numbers with these defaults, such as `rounds`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, number in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=number, metavar="N")
    return parser


def print_comparisons(comparisons: Iterable[Comparison], arguments: argparse.Namespace) -> None:
    """Prints each comparison as soon as it is measured, after a line that describes the run."""
    options = ", ".join(f"{name} {value}" for name, value in vars(arguments).items())
    print(f"{options}; {find_device()}, {torch.get_num_threads()} threads")
    for comparison in comparisons:
        print(comparison, flush=True)
