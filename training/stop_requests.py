"""Handles SIGTERM and SIGUSR1, which SLURM and others send before a job ends: finish the step, save, stop."""

import ctypes
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.sharedctypes import RawValue
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from ..files.user_error import Stopped
from .data.processes import end_with_parent


SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
# Environment variables that accelerate's and torch's launchers set.
LAUNCHERS = ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID")


def _end_after_run(is_running: Any, number: int, frame) -> None:
    # multiprocessing ends the workers of a process that exits with SIGTERM, and waits for them without a limit. Status
    # 0, because torch reports every other one.
    if not is_running.value:
        os._exit(0)


def _start_worker(is_running: Any, start: Callable[[int], None] | None, number: int) -> None:
    # A signal to all processes, as from torch's launcher, SLURM or a terminal, must not end the workers before the
    # step ends. They end with their loader, or with the process that started them.
    os.setsid()
    for number_of_signal in SIGNALS:
        signal.signal(number_of_signal, partial(_end_after_run, is_running))
    if start is not None:
        start(number)


class StopRequests:
    """
    Replaces the signals' handlers inside a `with` block.

    A signal stops the command immediately if nothing is lost, such as while models are loaded. Inside
    [`~StopRequests.deferred`] it is only recorded. Processes that are forked inside the block ignore it until the
    block ends, and so do the workers of [`~StopRequests.protect_workers`].
    """

    def __init__(self):
        self._received: int | None = None
        self._is_deferred = False
        self._process = os.getpid()
        self._handlers: dict[int, object] = {}
        # Shared with the workers, however they are started.
        self._is_running: Any = RawValue(ctypes.c_bool, False)

    def __enter__(self) -> "StopRequests":
        if threading.current_thread() is threading.main_thread():  # Python allows handlers in no other
            self._handlers = {number: signal.signal(number, self._request) for number in SIGNALS}
        self._is_running.value = True
        if any(name in os.environ for name in LAUNCHERS):
            # accelerate's launcher of one process passes no signal on, and torch's none but SIGTERM: they just end.
            end_with_parent()
        return self

    def __exit__(self, *error) -> None:
        self._is_running.value = False
        for number, handler in self._handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)
        self._handlers = {}

    def _request(self, number: int, frame) -> None:
        if os.getpid() != self._process:
            _end_after_run(self._is_running, number, frame)
            return
        self._received = number
        if not self._is_deferred:
            raise Stopped(f"Stopped by {self.name}: the same command continues from the last checkpoint.")

    @property
    def name(self) -> str:
        """Name of the signal. Another process may have received it."""
        return "a signal" if self._received is None else signal.Signals(self._received).name

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Only records a signal inside the `with` block."""
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False

    def is_requested(self) -> bool:
        """Whether any process has received a signal. Every process must call it."""
        state = PartialState()
        is_requested = self._received is not None
        if state.num_processes > 1:
            is_requested = bool(reduce(torch.tensor(int(is_requested), device=state.device), "sum"))
        return is_requested

    def protect_workers(self, loader: DataLoader) -> DataLoader:
        """Makes the workers of a data loader, or of accelerate's, ignore signals to the whole run."""
        base = getattr(loader, "base_dataloader", loader)
        base.worker_init_fn = partial(_start_worker, self._is_running, base.worker_init_fn)
        return loader


class StopCallback(TrainerCallback):
    """
    Saves a checkpoint and stops training at the end of the step in which any process receives a signal.

    transformers' callback for `enable_jit_checkpoint` saves in the middle of a step, when the step has already drawn
    random numbers, into a folder that has its final name too early, and at a different time on each process.

    Args:
        requests (`StopRequests`):
            Records the signals.
    """

    def __init__(self, requests: StopRequests):
        self._requests = requests
        self.has_stopped = False

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        # The check of the gradients has just synchronised the device and all processes, so this costs little time.
        self.has_stopped = self._requests.is_requested()

    def on_step_end(self, args, state, control, **kwargs):
        if self.has_stopped:
            control.should_save = control.should_training_stop = True
