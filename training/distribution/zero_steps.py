"""A step under DeepSpeed, which accelerate makes at the end of the last backward pass."""

from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils.deepspeed import DeepSpeedEngineWrapper
from torch import nn
from torch.nn.utils import get_total_norm

from .finite_checks import trained_parts


class CheckedEngine(DeepSpeedEngineWrapper):
    """
    accelerate's wrapper of DeepSpeed's engine, with a check between the last backward pass and the optimizer's step.

    Args:
        engine (`deepspeed.DeepSpeedEngine`):
            The engine.
        check (`Callable[[], None]`):
            Raises an error if the step must not be made.
    """

    def __init__(self, engine: Any, check: Callable[[], None]):
        super().__init__(engine)
        self._check = check

    def backward(self, loss, sync_gradients=True, **kwargs):
        self.engine.set_gradient_accumulation_boundary(is_boundary=sync_gradients)
        self.engine.backward(loss, **kwargs)
        if sync_gradients:
            self._check()
            self.engine.step()


def bad_gradient_norms(module: nn.Module, engine: Any) -> dict[str, torch.Tensor]:
    """
    Returns the norms of the gradients by part if a gradient is not finite on any process, otherwise an empty
    dictionary: ZeRO partitions gradients, and they are gathered only for an error. Every process must call it.

    Under fp16, DeepSpeed skips steps whose gradients overflow while it can lower its scale.
    """
    from deepspeed.utils import safe_get_full_grad  # pyright: ignore[reportMissingImports]

    if engine.fp16_enabled() and engine.optimizer.loss_scale > 1 or not engine.optimizer.has_overflow():
        return {}
    gradients: dict[str, list[torch.Tensor]] = {}
    for part, parameter in trained_parts(module):
        gradient = safe_get_full_grad(parameter) if parameter.requires_grad else None
        if gradient is not None:
            gradients.setdefault(part, []).append(gradient)
    return {part: get_total_norm(tensors) for part, tensors in gradients.items()}
