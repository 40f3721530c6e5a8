"""Executes runs on this machine, several at once."""

import os
import queue
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from contextlib import contextmanager

import torch

from .run import Run


def visible_devices(environment: Mapping[str, str]) -> list[str]:
    """Names of the CUDA devices that this process may use."""
    count = torch.cuda.device_count()
    named = environment.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else [str(index) for index in range(count)]


def count_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share_devices(devices: Sequence[str], jobs: int, has_launcher: bool) -> list[list[str]]:
    """Assigns devices to `jobs` simultaneous runs: one each, in turn, or an equal share each for a launcher."""
    shares = [devices[number::jobs] if has_launcher else [] for number in range(jobs)]
    return [share or [devices[number % len(devices)]] if devices else [] for number, share in enumerate(shares)]


@contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_locally(runs: Sequence[Run], jobs: int, report: Callable[[Run, BaseException | None], None]) -> None:
    """
    Executes runs in their order.

    Args:
        runs (`Sequence[Run]`):
            Runs that are not done.
        jobs (`int`):
            Number of runs at once. They share cores and CUDA devices.
        report (`Callable`):
            Called in this thread with each run that ended and its error, if any.
    """
    slots: queue.SimpleQueue[list[str]] = queue.SimpleQueue()
    for devices in share_devices(visible_devices(os.environ), jobs, any(run.launcher for run in runs)):
        slots.put(devices)
    num_threads = max(1, count_cores() // jobs)
    started: list[Run] = []

    def execute(run: Run) -> None:
        devices = slots.get()
        started.append(run)
        try:
            environment = {**os.environ, **({"CUDA_VISIBLE_DEVICES": ",".join(devices)} if devices else {})}
            run.execute(environment, num_threads, max(1, len(devices)))
        finally:
            slots.put(devices)

    with _exit_on_sigterm(), ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(execute, run): run for run in runs}
        try:
            for future in as_completed(futures):
                report(futures[future], future.exception())
        except BaseException:
            # Ctrl-C or SIGTERM. Repeated, because a thread may start another process after the first signal.
            pool.shutdown(wait=False, cancel_futures=True)
            while wait(futures, timeout=0.1).not_done:
                for run in started:
                    run.stop()
            raise
