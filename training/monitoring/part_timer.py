"""Times a part of each step."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

import torch


class PartTimer:
    """
    Sums the seconds of a part of several steps, on a GPU by events in its stream, so that nothing waits for it.

    Args:
        device (`torch.device`):
            Device that computes the part.
    """

    def __init__(self, device: torch.device):
        self._has_events = device.type == "cuda"
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Times the `with` block."""
        if not self._has_events:
            start = perf_counter()
            yield
            self._seconds += perf_counter() - start
            return
        events = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        events[0].record()
        yield
        events[1].record()
        self._events.append(events)

    def take(self) -> float:
        """Returns the seconds since the last call. On a GPU it waits for the last part."""
        if self._events:
            self._events[-1][1].synchronize()
            self._seconds += sum(start.elapsed_time(end) for start, end in self._events) / 1000
            self._events = []
        seconds, self._seconds = self._seconds, 0.0
        return seconds
