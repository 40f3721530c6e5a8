"""From the tensors of a checkpoint to a model of ours: each to its place, none twice, none lost in silence."""

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
    What a converter gives.

    Args:
        model (`PreTrainedModel`):
            In eval mode.
        unused_tensors (`list[str]`):
            Every tensor of the checkpoint that has no place in the model.
    """

    model: PreTrainedModel
    unused_tensors: list[str]


class TensorTarget(NamedTuple):
    """
    Where a tensor of a checkpoint goes.

    Args:
        name (`str`):
            A parameter, or buffer, of the model.
        index (`int` or `slice`, *optional*, defaults to all of it):
            Which part of that, along its first dimension.
        view (`Callable`, *optional*):
            What makes the tensor of the part's shape, where it has another.
    """

    name: str
    index: int | slice = slice(None)
    view: Callable[[torch.Tensor], torch.Tensor] | None = None

    def shape_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that a tensor of `shape` takes here; its own if it does not fit."""
        if self.view is None:
            return shape
        try:
            return tuple(self.view(torch.empty(shape, device="meta")).shape)
        except (RuntimeError, IndexError):  # other sizes, or fewer dimensions
            return shape


def build_empty(model_class: type[PreTrainedModel], config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """
    A model whose parameters have shapes but no memory. Its buffers are real: those that no file holds, such as the
    frequencies of rotary embeddings, are computed when a module is made.
    """
    for part in (config, *(getattr(config, name) for name in config.sub_configs)):
        part.dtype = dtype
    with init_empty_weights(include_buffers=False):
        # As when transformers loads: `dtype` is what a part finds as the default type while it is made.
        return model_class._from_config(config, dtype=dtype)


def match_tensors(
    tensors: CheckpointTensors, targets: dict[str, TensorTarget], is_unneeded: Callable[[str], bool], what: str
) -> list[str]:
    """
    Makes sure that each tensor of a checkpoint has a place or is known to need none, and that no place stays empty.

    Args:
        tensors (`CheckpointTensors`):
            What there is.
        targets (`dict[str, TensorTarget]`):
            By the checkpoint's names.
        is_unneeded (`Callable`):
            Whether a tensor of this name is known to have no place.
        what (`str`):
            What the checkpoint ought to be, as in "a CLIP".

    Returns:
        `list[str]`: the tensors without a place.

    Raises:
        ValueError: tensors are missing or unknown; all are named.
    """
    without_place = [name for name in tensors.names if name not in targets]
    problems = {
        "lacks": sorted(targets.keys() - tensors.shapes.keys()),
        f"has beyond what {what} has": [name for name in without_place if not is_unneeded(name)],
    }
    for problem, names in problems.items():
        if names:
            raise UserError(f"{tensors.checkpoint} {problem}: {', '.join(names)}. It is damaged or not {what}.")
    return without_place


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    module, _, leaf = name.rpartition(".")
    return model.get_submodule(module), leaf


def _allocate(model: nn.Module, name: str, dtype: torch.dtype) -> torch.Tensor:
    """Gives a parameter memory if it has none yet; a buffer has its own."""
    module, leaf = _owner(model, name)
    tensor = getattr(module, leaf)
    if tensor.is_meta:
        tensor = nn.Parameter(torch.empty(tensor.shape, dtype=dtype))
        setattr(module, leaf, tensor)
    return tensor.detach()


def _check(model: nn.Module, tensors: CheckpointTensors, targets: dict[str, TensorTarget]) -> None:
    wrong = []
    for name, place in targets.items():
        if tensors.dtypes[name] not in FLOAT_DTYPES:
            raise UserError(
                f"{tensors.checkpoint} holds {name} as {tensors.dtypes[name]}: it is quantized, and only weights of "
                f"{', '.join(FLOAT_DTYPES)} can be taken over. Name the checkpoint that was quantized."
            )
        module, leaf = _owner(model, place.name)
        expected, found = tuple(getattr(module, leaf)[place.index].shape), place.shape_of(tensors.shapes[name])
        if found != expected:
            wrong.append(f"{name} {list(tensors.shapes[name])} where {list(expected)} belongs")
    if wrong:
        raise UserError(
            f"{tensors.checkpoint} has in another shape: {', '.join(wrong)}. It is damaged, or its config.json is not "
            "its own."
        )


@torch.no_grad()
def fill_model(
    model: PreTrainedModel,
    sources: Iterable[tuple[CheckpointTensors, dict[str, TensorTarget]]],
    dtype: torch.dtype,
) -> PreTrainedModel:
    """
    Copies tensors to their targets, one at a time: besides the model, memory holds pages of one file at most. Adapters
    that no tensor goes to are made fresh, which add nothing.

    Args:
        model (`PreTrainedModel`):
            From [`build_empty`].
        sources (`Iterable[tuple[CheckpointTensors, dict[str, TensorTarget]]]`):
            Checkpoints, and where their tensors go.
        dtype (`torch.dtype`):
            Type of the parameters.

    Raises:
        ValueError: a tensor has another shape than its place, or is quantized.
    """
    for tensors, targets in sources:
        _check(model, tensors, targets)
        for name, tensor in tensors.read(targets):
            place = targets[name]
            part = tensor if place.view is None else place.view(tensor)
            _allocate(model, place.name, dtype)[place.index].copy_(part)
    model.tie_weights()
    fresh = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    assert all(ADAPTER_NAMES.search(name) for name in fresh), fresh
    for name in fresh:
        _allocate(model, name, dtype)
    for module in dict.fromkeys(_owner(model, name)[0] for name in fresh):
        model._init_weights(module)
    return model.eval()
