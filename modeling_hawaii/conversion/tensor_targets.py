"""Copies the tensors of a checkpoint into a model: each to its target, none twice, none silently dropped."""

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from ...files.user_error import UserError
from .checkpoint_tensors import FLOAT_DTYPES, CheckpointTensors


ADAPTER_NAMES = re.compile(r"layers\.\d+\.feed_forward\.(routing|(fc1_|fc2_)?adapters)\.")


class Conversion(NamedTuple):
    """
    Result of a converter.

    Args:
        model (`PreTrainedModel`):
            In eval mode.
        unused_tensors (`list[str]`):
            Names of the checkpoint's tensors that have no target in the model.
    """

    model: PreTrainedModel
    unused_tensors: list[str]


class TensorTarget(NamedTuple):
    """
    Destination of a checkpoint's tensor.

    Args:
        name (`str`):
            Parameter or buffer of the model.
        index (`int` or `slice`, *optional*, defaults to all of it):
            Part of it, along the first dimension.
        view (`Callable`, *optional*):
            Reshapes the tensor if the layouts differ.
    """

    name: str
    index: int | slice = slice(None)
    view: Callable[[torch.Tensor], torch.Tensor] | None = None

    def shape_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape that `view` gives a tensor of `shape`; `shape` itself if the view cannot be applied."""
        if self.view is None:
            return shape
        try:
            return tuple(self.view(torch.empty(shape, device="meta")).shape)
        except (RuntimeError, IndexError):  # other sizes, or fewer dimensions
            return shape


def build_empty(model_class: type[PreTrainedModel], config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """
    Builds a model on the meta device, except its buffers: those that no file contains, such as the frequencies of
    rotary embeddings, are computed when a module is built.
    """
    for part in (config, *(getattr(config, name) for name in config.sub_configs)):
        part.dtype = dtype
    with init_empty_weights(include_buffers=False):
        # As when transformers loads a model: modules are built with `dtype` as the default type.
        return model_class._from_config(config, dtype=dtype)


def match_tensors(
    tensors: CheckpointTensors, targets: dict[str, TensorTarget], is_unneeded: Callable[[str], bool], expected: str
) -> list[str]:
    """
    Checks that each tensor has a target or is known to need none, and that each target has a tensor.

    Args:
        tensors (`CheckpointTensors`):
            The checkpoint.
        targets (`dict[str, TensorTarget]`):
            Targets by the checkpoint's names.
        is_unneeded (`Callable`):
            Whether a tensor of this name is known to have no target.
        expected (`str`):
            What the checkpoint should be, such as "a CLIP".

    Returns:
        `list[str]`: names of the tensors without a target.

    Raises:
        UserError: tensors are missing or unknown; lists all of them.
    """
    without_target = [name for name in tensors.names if name not in targets]
    problems = {
        "lacks": sorted(targets.keys() - tensors.shapes.keys()),
        f"has tensors that {expected} does not have": [name for name in without_target if not is_unneeded(name)],
    }
    for problem, names in problems.items():
        if names:
            raise UserError(f"{tensors.checkpoint} {problem}: {', '.join(names)}. It is damaged or not {expected}.")
    return without_target


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    module, _, leaf = name.rpartition(".")
    return model.get_submodule(module), leaf


def _allocate(model: nn.Module, name: str, dtype: torch.dtype) -> torch.Tensor:
    """Allocates a parameter that is still on the meta device, and returns the parameter or buffer."""
    module, leaf = _owner(model, name)
    tensor = getattr(module, leaf)
    if tensor.is_meta:
        tensor = nn.Parameter(torch.empty(tensor.shape, dtype=dtype))
        setattr(module, leaf, tensor)
    return tensor.detach()


def _check_shapes_and_types(model: nn.Module, tensors: CheckpointTensors, targets: dict[str, TensorTarget]) -> None:
    wrong = []
    for name, target in targets.items():
        if tensors.dtypes[name] not in FLOAT_DTYPES:
            raise UserError(
                f"{tensors.checkpoint} contains {name} as {tensors.dtypes[name]}: it is quantized, and only weights "
                f"of {', '.join(FLOAT_DTYPES)} can be converted. Name the original, unquantized checkpoint."
            )
        module, leaf = _owner(model, target.name)
        expected = list(getattr(module, leaf)[target.index].shape)
        if list(target.shape_of(tensors.shapes[name])) != expected:
            wrong.append(f"{name} {list(tensors.shapes[name])} instead of {expected}")
    if wrong:
        raise UserError(
            f"{tensors.checkpoint} has tensors of unexpected shapes: {', '.join(wrong)}. It is damaged, or its "
            "config.json belongs to another model."
        )


@torch.no_grad()
def fill_model(
    model: PreTrainedModel,
    sources: Iterable[tuple[CheckpointTensors, dict[str, TensorTarget]]],
    dtype: torch.dtype,
) -> PreTrainedModel:
    """
    Copies tensors to their targets one at a time: memory holds the model and pages of one file at most. Adapters
    without a tensor are initialised so that they add nothing.

    Args:
        model (`PreTrainedModel`):
            From [`build_empty`].
        sources (`Iterable[tuple[CheckpointTensors, dict[str, TensorTarget]]]`):
            Checkpoints, and the targets of their tensors.
        dtype (`torch.dtype`):
            Type of the parameters.

    Raises:
        UserError: a tensor does not have its target's shape, or is quantized.
    """
    for tensors, targets in sources:
        _check_shapes_and_types(model, tensors, targets)
        for name, tensor in tensors.read(targets):
            target = targets[name]
            part = tensor if target.view is None else target.view(tensor)
            _allocate(model, target.name, dtype)[target.index].copy_(part)
    model.tie_weights()
    fresh = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    assert all(ADAPTER_NAMES.search(name) for name in fresh), fresh
    for name in fresh:
        _allocate(model, name, dtype)
    for module in dict.fromkeys(_owner(model, name)[0] for name in fresh):
        model._init_weights(module)
    return model.eval()
