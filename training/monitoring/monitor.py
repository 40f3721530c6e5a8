"""Entries of the training log in addition to the loss terms: time, throughput and the routers' load."""

import time
from contextlib import AbstractContextManager
from typing import Any

import torch
from accelerate import Accelerator

from ..counting.gpus import find_peak
from ..objectives.objective import select_distilled
from ..recipes.objectives import StudentWithObjective
from .part_timer import PartTimer
from .router_load import RouterLoad
from .step_flops import StepFlops


# Entries that depend on the clock, so that two equal runs differ in them.
CLOCK_ENTRIES = ("time", "teacher_share", "samples_per_second", "tokens_per_second", "flops_per_second", "mfu")


class Monitor:
    """
    Counts samples, tokens, operations and the routers' choices between two log entries. The device is synchronised
    only when an entry is written.

    Args:
        module (`StudentWithObjective`):
            The trained module, not yet wrapped.
        teachers (`list`):
            The teachers.
        accelerator (`Accelerator`):
            Joins the processes.
    """

    def __init__(self, module: StudentWithObjective, teachers: list, accelerator: Accelerator):
        self._accelerator = accelerator
        objective: Any = module.objective
        self._load = RouterLoad(module.student, objective.names)  # a stage without distillation has no teachers
        self._flops = StepFlops(module, teachers)
        self._tokens: torch.Tensor | int = 0
        self._samples = 0
        self._seconds: float | None = None  # of training, at the beginning of the interval
        self._has_teachers = bool(teachers)
        self._teachers = PartTimer(accelerator.device)
        device = accelerator.device
        is_half = accelerator.mixed_precision in ("bf16", "fp16")
        has_peak = device.type == "cuda" and is_half  # peaks are those of 16 bits
        self._peak = find_peak(torch.cuda.get_device_name(device)) if has_peak else None

    def timed_teachers(self) -> AbstractContextManager[None]:
        """Times the teachers in the `with` block."""
        return self._teachers.running()

    def expect(self, batch: dict[str, Any], seconds: float) -> None:
        """Registers the next micro-batch, the collator's output on the device, and the seconds of training so far."""
        self._seconds = seconds if self._seconds is None else self._seconds
        is_counted = batch["image_index"] >= 0
        self._load.expect(is_counted)
        self._flops.num_teacher_images += len(select_distilled(batch, is_counted))
        if "input_ids" not in batch:  # images alone
            self._samples += len(is_counted)
            return
        self._samples += len(batch["prompt_ids"])
        is_packed = "attention_mask" not in batch
        self._tokens = self._tokens + (batch["input_ids"].numel() if is_packed else batch["attention_mask"].sum())

    def summarize(self, seconds: float) -> dict[str, Any]:
        """
        Returns the entries since the last call. Every process must call it.

        Args:
            seconds (`float`):
                Seconds of training so far, without evaluations.

        Returns:
            `dict`: `time`, in seconds since 1970; `teacher_share`, that of the teachers in the time of this process;
            `samples_per_second` and `tokens_per_second`, without padding, of
            all processes; `mfu` of one device where its peak is known, otherwise its `flops_per_second`; and the
            entries of [`RouterLoad`].
        """
        entries: dict[str, Any] = {"time": round(time.time(), 3)}
        counts = [self._samples, self._tokens, self._flops.take()]
        device = self._accelerator.device
        totals = torch.stack([torch.as_tensor(count, dtype=torch.float32, device=device) for count in counts])
        totals: Any = self._accelerator.reduce(totals, "sum")
        samples, tokens, flops = totals.tolist()
        elapsed = seconds - (seconds if self._seconds is None else self._seconds)
        self._samples, self._tokens, self._seconds = 0, 0, seconds
        teacher_seconds = self._teachers.take()
        if elapsed > 0:
            if self._has_teachers:
                entries["teacher_share"] = float(f"{teacher_seconds / elapsed:.4g}")
            entries["samples_per_second"] = float(f"{samples / elapsed:.4g}")
            if tokens:
                entries["tokens_per_second"] = float(f"{tokens / elapsed:.4g}")
            rate = flops / elapsed / self._accelerator.num_processes
            if self._peak is None:
                entries["flops_per_second"] = float(f"{rate:.4g}")
            else:
                entries["mfu"] = float(f"{rate / self._peak:.4g}")
        return {**entries, **self._load.summarize(self._accelerator)}
