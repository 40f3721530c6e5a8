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
    """A converted model, in eval mode, and the names of the checkpoint's tensors that have no target in it."""

    model: PreTrainedModel
    unused_tensors: list[str]


class TensorTarget(NamedTuple):
    """Destination of a checkpoint's tensor."""

    name: str  # of a parameter or buffer of the model
    index: int | slice = slice(None)  # part of it, along the first dimension
    view: Callable[[torch.Tensor], torch.Tensor] | None = None  # reshapes the tensor if the layouts differ

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
    Returns the names of the tensors without a target, after checking that each of them is known to need none and that
    each target, by the checkpoint's names, has a tensor.

    Raises:
        UserError: tensors are missing or unknown, so the checkpoint is not `expected`, such as "a CLIP"; lists all.
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


def _allocate(model: nn.Module, name: str, dtype: torch.dtype) -> torch.Tensor:
    """Allocates a parameter that is still on the meta device, and returns the parameter or buffer."""
    module_name, _, leaf = name.rpartition(".")
    module = model.get_submodule(module_name)
    tensor = getattr(module, leaf)
    if tensor.is_meta:
        tensor = nn.Parameter(torch.empty(tensor.shape, dtype=dtype))
        setattr(module, leaf, tensor)
    return tensor.detach()


def _check_shapes_and_types(model: nn.Module, tensors: CheckpointTensors, targets: dict[str, TensorTarget]) -> None:
    wrong, empty = [], model.state_dict()
    for name, target in targets.items():
        if tensors.dtypes[name] not in FLOAT_DTYPES:
            raise UserError(
                f"{tensors.checkpoint} contains {name} as {tensors.dtypes[name]}: it is quantized, and only weights "
                f"of {', '.join(FLOAT_DTYPES)} can be converted. Name the original, unquantized checkpoint."
            )
        expected = list(empty[target.name][target.index].shape)
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
    without a tensor are initialised so that they add nothing. `dtype` is the type of the parameters.

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
    uninitialized = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    assert all(ADAPTER_NAMES.search(name) for name in uninitialized), uninitialized
    for name in uninitialized:
        _allocate(model, name, dtype)
    for module_name in dict.fromkeys(name.rpartition(".")[0] for name in uninitialized):
        model._init_weights(model.get_submodule(module_name))
    return model.eval()
