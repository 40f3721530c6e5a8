"""The seconds of a part are those between the start and the end of its block."""

import pytest
import torch

from hawaii.training.monitoring import part_timer
from hawaii.training.monitoring.part_timer import PartTimer


def test_the_seconds_of_all_blocks_are_summed_and_taken_once(monkeypatch):
    clock = iter([1.0, 3.0, 10.0, 10.5])
    monkeypatch.setattr(part_timer, "perf_counter", lambda: next(clock))
    timer = PartTimer(torch.device("cpu"))
    for _ in range(2):
        with timer.running():
            pass
    assert timer.take() == pytest.approx(2.5)
    assert timer.take() == 0


class Event:
    """A CUDA event whose time is its number."""

    number, waits = 0, 0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        Event.number += 1
        self.time = Event.number * Event.number

    def elapsed_time(self, end):
        return 1000.0 * (end.time - self.time)

    def synchronize(self):
        Event.waits += 1


def test_on_a_gpu_events_are_read_at_the_end_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", Event)
    timer = PartTimer(torch.device("cuda"))
    for _ in range(2):
        with timer.running():
            pass
    assert Event.waits == 0
    assert timer.take() == (4 - 1) + (16 - 9) and Event.waits == 1
    assert timer.take() == 0
