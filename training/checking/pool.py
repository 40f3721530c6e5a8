"""
Reads rows in several processes. If a row takes too long, needs too much memory or ends its process, the other rows are
still read.
"""

import os
import resource
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from pathlib import Path

import torch

from ..data.processes import end_with_parent
from .rows import AllRows, Row


CHUNK_SIZE = 32  # rows that a process reads at a time
ROW_SECONDS = 60
# Memory limit of a process for a row. The largest image that Pillow opens, of 179 million pixels, needs 1 to 3 GiB.
ROW_BYTES = 4 * 2**30

# The data set of this process of the pool.
_dataset: AllRows


def _stop(signum, frame):
    raise TimeoutError(f"reading it takes longer than {ROW_SECONDS} seconds")


def _start(dataset: AllRows) -> None:
    global _dataset
    _dataset = dataset
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent()  # without it, a process would wait forever for rows of a parent that was killed
    signal.signal(signal.SIGALRM, _stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends the others
    statm = Path("/proc/self/statm")
    if statm.is_file():
        used = int(statm.read_text().split()[0]) * resource.getpagesize()
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        with suppress(ValueError):  # a lower limit is set already
            resource.setrlimit(resource.RLIMIT_AS, (used + ROW_BYTES, most))


def _inspect(indices: Sequence[int]) -> list[Row]:
    rows = []
    for index in indices:
        signal.setitimer(signal.ITIMER_REAL, ROW_SECONDS)
        try:
            rows.append(_dataset.inspect(index))
        except TimeoutError as error:
            rows.append(Row(problem=str(error)))
        except MemoryError:
            rows.append(Row(problem=f"reading it takes more than {ROW_BYTES >> 30} GiB of memory"))
        except Exception as error:  # a file system's error, or a library's for unexpected content
            rows.append(Row(problem=f"it cannot be read ({type(error).__name__}: {error})"))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    return rows


@contextmanager
def _make_pool(dataset: AllRows, num_processes: int) -> Iterator[ProcessPoolExecutor]:
    # Forked, so that the records are shared and not copied.
    with ProcessPoolExecutor(num_processes, get_context("fork"), _start, (dataset,)) as pool:
        try:
            yield pool
        except KeyboardInterrupt:
            # The pool would first read the rows that are queued. Python 3.14 has `kill_workers` for it.
            for process in pool._processes.values():
                process.kill()
            raise


def _inspect_alone(dataset: AllRows, indices: Sequence[int]) -> Iterator[tuple[int, Row]]:
    """Reads rows one by one, to find the one that ends its process."""
    waiting = deque(indices)
    while waiting:
        with _make_pool(dataset, 1) as pool:
            try:
                while waiting:
                    (row,) = pool.submit(_inspect, [waiting[0]]).result()
                    yield waiting.popleft(), row
            except BrokenProcessPool:
                yield waiting.popleft(), Row(problem="the process that reads it is killed, or crashes")


def inspect_rows(dataset: AllRows, num_processes: int, advance: Callable[[int], object]) -> list[Row]:
    """
    Reads every row.

    Args:
        dataset (`AllRows`):
            The rows.
        num_processes (`int`):
            Number of processes.
        advance (`Callable`):
            Called with the number of rows that are done.
    """
    rows: dict[int, Row] = {}
    chunks = deque(range(len(dataset))[start : start + CHUNK_SIZE] for start in range(0, len(dataset), CHUNK_SIZE))
    while chunks:
        running: dict[Future, range] = {}
        with _make_pool(dataset, num_processes) as pool:
            try:
                while chunks or running:
                    # Few chunks at a time: if a process dies, one of these contains the row that caused it.
                    while chunks and len(running) < 2 * num_processes:
                        future = pool.submit(_inspect, chunks[0])
                        running[future] = chunks.popleft()
                    done, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        rows |= zip(running[future], future.result())
                        advance(len(running.pop(future)))
            except BrokenProcessPool:
                pass  # handled below, after the pool is closed
        for chunk in running.values():
            rows |= _inspect_alone(dataset, chunk)
            advance(len(chunk))
    return [rows[index] for index in range(len(dataset))]
