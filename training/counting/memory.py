"""Memory of a device for training, without activations, and size of a checkpoint, in bytes."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import Trainer
from transformers.pytorch_utils import Conv1D

from ..recipes.arguments import STRATEGIES as recipes_strategies
from ..recipes.arguments import HawaiiTrainingArguments
from ..recipes.objectives import StudentWithObjective
from .step import find_layers, find_parts


STRATEGIES = tuple(name for name in recipes_strategies if name != "single")
NF4_BLOCK, SCALES_BLOCK = 64, 256  # weights that share a scale in 4 bits, and scales that share one, in bitsandbytes
# Defaults of DeepSpeed, in elements: reduce_bucket_size and allgather_bucket_size, and stage3_max_live_parameters.
BUCKET_SIZE, MAX_LIVE_PARAMETERS = 500_000_000, 1_000_000_000


def tensor_bytes(tensors) -> int:
    """Bytes of tensors; a tensor that occurs twice counts once."""
    return sum(tensor.nbytes for tensor in {id(tensor): tensor for tensor in tensors}.values())


def module_bytes(module: nn.Module) -> int:
    """Bytes of a module's parameters and buffers."""
    return tensor_bytes([*module.parameters(), *module.buffers()])


def quantization_savings(module: StudentWithObjective, quantization: str | None) -> int:
    """Bytes by which the frozen linear layers of the language model shrink with `4bit` or `8bit`; 0 with neither."""
    if quantization is None:
        return 0
    student: Any = module.student
    linears = (layer for layer in student.model.language_model.modules() if isinstance(layer, (nn.Linear, Conv1D)))
    weights = [layer.weight for layer in linears if not layer.weight.requires_grad]
    if quantization == "8bit":  # a scale in float32 for each output
        quantized = sum(weight.numel() + 4 * weight.shape[0] for weight in weights)
    else:  # a scale of 8 bits for each block, and one in float32 for each block of scales
        blocks = [-(-weight.numel() // NF4_BLOCK) for weight in weights]
        quantized = sum(-(-weight.numel() // 2) for weight in weights) + sum(
            number + 4 * -(-number // SCALES_BLOCK) for number in blocks
        )
    return tensor_bytes(weights) - quantized


def optimizer_bytes(module: nn.Module, args: HawaiiTrainingArguments) -> int | None:
    """
    Bytes of the optimizer's states. The optimizer takes a step on tensors without data; `None` if it cannot, as with
    bitsandbytes' optimizers.
    """
    optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(args)
    with FakeTensorMode():
        weights = [torch.empty(p.shape, dtype=p.dtype) for p in module.parameters() if p.requires_grad]
        for weight in weights:
            weight.grad = torch.empty_like(weight)
        try:
            optimizer = optimizer_class(weights, **options)
            optimizer.step()
        except Exception:  # of any type, because libraries' kernels do not expect such tensors
            return None
        states = [value for state in optimizer.state.values() for value in state.values()]
    return tensor_bytes(value for value in states if isinstance(value, torch.Tensor))


@dataclass
class Weights:
    """
    Sizes of the trained module.

    Args:
        weights, gradients (`int`):
            Bytes of parameters and buffers, and of the gradients.
        optimizer (`int`, *optional*):
            Bytes of the optimizer's states, if they are known.
        num_parameters, num_trainable (`int`):
            Numbers of all parameters, and of the trainable ones.
        num_gathered (`int`):
            Parameters outside of layers and in the two largest layers, which FSDP gathers at once.
    """

    weights: int
    gradients: int
    optimizer: int | None
    num_parameters: int
    num_trainable: int
    num_gathered: int

    @classmethod
    def measure(
        cls, module: StudentWithObjective, args: HawaiiTrainingArguments, quantization: str | None = None
    ) -> "Weights":
        """Measures a module, on any device; with `quantization`, as if its language model were quantized."""
        parameters = list(module.parameters())
        trainable = [parameter for parameter in parameters if parameter.requires_grad]
        num_parameters = sum(parameter.numel() for parameter in parameters)
        layers: list[Any] = []
        for part in find_parts(module.student):
            place = find_layers(part)
            layers += [] if place is None else list(getattr(*place))
        sizes = sorted(sum(parameter.numel() for parameter in layer.parameters()) for layer in layers)
        return cls(
            weights=module_bytes(module) - quantization_savings(module, quantization),
            gradients=tensor_bytes(trainable),
            optimizer=optimizer_bytes(module, args),
            num_parameters=num_parameters,
            num_trainable=sum(parameter.numel() for parameter in trainable),
            num_gathered=num_parameters - sum(sizes) + sum(sizes[-2:]),
        )


@dataclass
class DeviceMemory:
    """Bytes on one device: weights, gradients, states of the optimizer, and buffers of the communication."""

    weights: int
    gradients: int
    optimizer: int
    buffers: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.buffers


def place_on_devices(sizes: Weights, strategy: str | None, num_devices: int, compute_bytes: int) -> DeviceMemory:
    """
    Distributes the weights over devices.

    Args:
        sizes (`Weights`):
            The module.
        strategy (`str`, *optional*):
            One of `STRATEGIES`; one device alone if not given.
        num_devices (`int`):
            Number of devices.
        compute_bytes (`int`):
            Bytes of an element in computations, 2 with bf16 or fp16.
    """
    optimizer = sizes.optimizer or 0
    if strategy is None:
        return DeviceMemory(sizes.weights, sizes.gradients, optimizer, 0)
    if strategy == "ddp":  # copies the gradients into buckets
        return DeviceMemory(sizes.weights, sizes.gradients, optimizer, sizes.gradients)

    def share(size: int) -> int:
        return -(-size // num_devices)

    if strategy == "fsdp2":
        buffers = sizes.num_gathered * compute_bytes * (2 if sizes.num_trainable else 1)  # gradients, too
        return DeviceMemory(share(sizes.weights), share(sizes.gradients), share(optimizer), buffers)
    # DeepSpeed computes on weights in 16 bits and keeps those in float32 with the optimizer.
    weights, gradients = sizes.num_parameters * compute_bytes, sizes.num_trainable * compute_bytes
    states = optimizer + (4 * sizes.num_trainable if compute_bytes < 4 else 0)
    buffers = 2 * min(BUCKET_SIZE, sizes.num_trainable) * compute_bytes
    if strategy == "zero2":
        weights = min(weights, sizes.weights)  # a quantized base keeps its precision
        return DeviceMemory(weights, share(gradients), share(states), buffers)
    buffers += min(MAX_LIVE_PARAMETERS, sizes.num_parameters) * compute_bytes
    return DeviceMemory(share(weights), share(gradients), share(states), buffers)


def checkpoint_bytes(sizes: Weights, strategy: str | None, compute_bytes: int) -> int:
    """Bytes of a checkpoint: weights in safetensors and the optimizer's states; sharded runs keep a second copy."""
    optimizer = sizes.optimizer or 0
    if strategy in (None, "ddp"):
        return sizes.weights + optimizer
    if strategy == "fsdp2":
        return 2 * sizes.weights + optimizer
    master = 4 * sizes.num_trainable if compute_bytes < 4 else 0
    return (1 + (strategy == "zero3")) * sizes.num_parameters * compute_bytes + master + optimizer
