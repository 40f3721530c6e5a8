"""Stops training at the first loss term, gradient or weight that is not finite, on all processes."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from ...files.user_error import UserError
from ..students.trainable import part_of


MAX_NAMED_RECORDS = 64  # in an error; a step of many processes has thousands


def trained_parts(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yields each parameter of a `StudentWithObjective` with its part, one of `TRAINABLE_PARTS`."""
    for name, parameter in module.named_parameters():
        child, _, rest = name.partition(".")
        yield part_of(rest) if child == "student" else "projections", parameter


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """This process's shard of a tensor: each checks its own, and the results are joined."""
    if hasattr(tensor, "ds_tensor"):  # ZeRO-3 leaves a parameter itself empty
        # All shards have the same size. The padding at the end of the last ones is never written: it may be NaN.
        parameter: Any = tensor
        shard = parameter.ds_tensor
        start = dist.get_rank(parameter.ds_process_group) * len(shard)
        return shard[: max(0, parameter.ds_numel - start)]
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gradient_norms(module: nn.Module) -> dict[str, torch.Tensor]:
    """Returns the norm of this process's gradients by part; those of parts without gradients are left out."""
    gradients: dict[str, list[torch.Tensor]] = {}
    for part, parameter in trained_parts(module):
        if parameter.grad is not None:
            gradients.setdefault(part, []).append(_local(parameter.grad))
    return {part: get_total_norm(tensors) for part, tensors in gradients.items()}


def _any_process(flags: torch.Tensor, accelerator: Accelerator) -> bool:
    """Whether a flag is set on any process. Only one number is copied from the device."""
    num_set = flags.sum()
    if accelerator.num_processes > 1:
        num_set = accelerator.reduce(num_set, "sum")
    return bool(num_set)


def _not_finite(values: Sequence[torch.Tensor], accelerator: Accelerator) -> torch.Tensor:
    return ~torch.stack([value.detach().to(accelerator.device, torch.float32) for value in values]).isfinite()


def _join(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _join_records(records: Sequence[str]) -> str:
    left_out = len(records) - MAX_NAMED_RECORDS
    return f"{', '.join(records[:MAX_NAMED_RECORDS])}{f' and {left_out} others' if left_out > 0 else ''}"


def check_step(
    step: int,
    terms: Sequence[dict[str, torch.Tensor]],
    norms: dict[str, torch.Tensor],
    records: Sequence[Sequence[str]],
    accelerator: Accelerator,
) -> None:
    """
    Checks a step before the optimizer changes weights. Every process must call it.

    Under fp16 the scaler skips steps whose gradients overflow, and lowers its scale, so an infinite gradient is an
    error only if the scale cannot be lowered further.

    Args:
        step (`int`):
            Number of the step, in the error.
        terms (`Sequence[dict[str, torch.FloatTensor]]`):
            Loss terms of each micro-batch of this process, scalars.
        norms (`dict[str, torch.FloatTensor]`):
            Norms of the gradients from [`gradient_norms`], before they are clipped: clipping by a norm that is not
            finite spreads NaN over all gradients.
        records (`Sequence[Sequence[str]]`):
            Ids of the records of each micro-batch of this process.
        accelerator (`Accelerator`):
            Joins the processes.

    Raises:
        UserError: a term or a gradient is not finite, on any process. The message names it and the records of the
            micro-batches with such a term, or all records of the step if only a gradient is not finite.
    """
    named = [*terms, norms]
    flags = _not_finite([value for values in named for value in values.values()], accelerator)
    if not _any_process(flags, accelerator):
        return
    flag = iter(flags.tolist())
    *bad_terms, bad_parts = [[name for name in values if next(flag)] for values in named]
    found = gather_object([(bad_terms, bad_parts, records)])
    batches = [batch for bad, _, ids in found for batch in zip(bad, ids, strict=True)]
    names = list(dict.fromkeys(name for bad, _ in batches for name in bad))
    if names:
        names = [name for name in names if name != "loss"] or names  # the sum of the others
        ids = [record for bad, batch in batches if bad for record in batch]
        subject = f"the loss terms {_join(names)} are" if len(names) > 1 else f"the loss term {names[0]} is"
    elif accelerator.scaler is not None and accelerator.scaler.get_scale() > 1:
        return
    else:
        ids = [record for _, batch in batches for record in batch]
        subject = f"the gradient of {_join(list(dict.fromkeys(part for _, parts, _ in found for part in parts)))} is"
    raise UserError(
        f"Training stopped before step {step} changed a weight, because {subject} not finite for the records "
        f"{_join_records(ids)}: fix these records, or lower learning_rate and name another output_dir (a run that "
        "continues from a checkpoint keeps the old learning rate)."
    )


def check_weights(step: int, module: nn.Module, accelerator: Accelerator) -> None:
    """
    Checks the weights before they are saved or evaluated. Every process must call it.

    Raises:
        UserError: a weight is not finite, on any process. The message names the parts and the step.
    """
    parts: dict[str, list[torch.Tensor]] = {}
    for part, parameter in trained_parts(module):
        parts.setdefault(part, []).append(_local(parameter).detach().isfinite().all())
    flags = torch.stack([~torch.stack(is_finite).all() for is_finite in parts.values()])
    if not _any_process(flags, accelerator):
        return
    bad = gather_object([part for part, is_bad in zip(parts, flags.tolist()) if is_bad])
    raise UserError(
        f"The weights of {_join(list(dict.fromkeys(bad)))} are not finite after step {step}, so they are not used: "
        "lower learning_rate and name another output_dir (a run that continues from a checkpoint keeps the old "
        "learning rate)."
    )
