"""The costs of a stage: memory, FLOPs, bytes on disk and hours."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..baselines.class_token_teacher import ClassTokenTeacher
from ..objectives.encoder_passes import encoder_of
from ..recipes.objectives import OBJECTIVES, StudentWithObjective
from ..recipes.recipe import Stage
from ..teachers.grids import matched_shape
from ..teachers.teacher import Teacher
from .gpus import GPUS
from .machine import Machine
from .memory import DeviceMemory, Weights, checkpoint_bytes, module_bytes, place_on_devices
from .samples import Samples, find_samples
from .step import BatchShape, StepCost, trace_outline
from .teachers import count_flops


GIB = 2**30
CACHED_BYTES = 4  # of a cached value on the device, converted to float32
CONTEXT_BYTES = GIB  # of CUDA and its libraries


def teacher_step_flops(teachers: Sequence[Teacher | ClassTokenTeacher], num_squares: int) -> int:
    """Floating-point operations of all teachers for a micro-batch."""

    def flops(teacher: Teacher | ClassTokenTeacher) -> int:
        image = torch.zeros(1, 3, teacher.image_size, teacher.image_size, dtype=torch.uint8, device="meta")
        return count_flops(lambda: teacher(image))

    return num_squares * sum(map(flops, teachers))


def teacher_feature_bytes(teachers: Sequence[Teacher | ClassTokenTeacher], num_squares: int) -> int:
    """Bytes of the features, and of the pixels that the teachers receive."""
    total = 0
    for teacher in teachers:
        height, width, channels = teacher.grid
        weight = next(teacher.model.parameters())
        total += num_squares * height * width * channels * weight.element_size()
    side = max((teacher.image_size for teacher in teachers), default=0)
    return total + num_squares * 3 * side**2


def cache_values(stage: Stage, module: StudentWithObjective, teachers: Sequence[Teacher | ClassTokenTeacher]) -> int:
    """Number of values of one square's features at the student's grid."""
    vision = encoder_of(module.student).config
    matching = getattr(stage.options, "grid_matching", "unshuffle")
    shapes = [matched_shape(*teacher.grid, vision.patches_a_side, matching) for teacher in teachers]
    return sum(tokens * channels for tokens, channels in shapes)


@dataclass
class StageCost:
    """
    Costs of a stage on one device of a machine.

    Args:
        stage (`Stage`), machine (`Machine`), samples (`Samples`):
            The stage, the machine and the samples that the costs are for.
        weights (`Weights`):
            Sizes of the trained module.
        usual (`StepCost`), recomputation (`int`):
            Costs of a micro-batch of mean size without gradient checkpointing, and the number of operations that
            gradient checkpointing adds.
        plain, checkpointed (`StepCost`):
            Costs of a micro-batch of the longest samples, without and with gradient checkpointing.
        teacher_flops, feature_bytes (`int`):
            The teachers' operations for a micro-batch, and the bytes of their features.
        teacher_sizes (`list[int]`):
            Bytes of each teacher's weights; empty if a cache replaces them.
        num_cached (`int`):
            Number of values in the features of a square.
    """

    stage: Stage
    machine: Machine
    samples: Samples
    weights: Weights
    usual: StepCost
    recomputation: int
    plain: StepCost
    checkpointed: StepCost
    teacher_flops: int
    teacher_sizes: list[int]
    feature_bytes: int
    num_cached: int

    @property
    def is_checkpointed(self) -> bool:
        return bool(self.stage.training.gradient_checkpointing)

    @property
    def is_half(self) -> bool:
        return self.stage.training.bf16 or self.stage.training.fp16

    @property
    def compute_bytes(self) -> int:
        return 2 if self.is_half else torch.empty((), dtype=getattr(torch, self.stage.model.dtype)).element_size()

    def on(self, strategy: str | None, devices: int) -> DeviceMemory:
        """The memory of weights, gradients and the optimizer with another strategy."""
        return place_on_devices(self.weights, strategy, devices, self.compute_bytes)

    def activation_bytes(self, is_checkpointed: bool, strategy: str | None) -> int:
        """Peak bytes of activations; strategies that gather weights in 16 bits need no autocast copies."""
        cost = self.checkpointed if is_checkpointed else self.plain
        return cost.peak if strategy in (None, "ddp") else cost.activations

    def teacher_bytes(self, devices: int) -> int:
        """Bytes of the teachers on a device; sharded ones are gathered one after another."""
        total = sum(self.teacher_sizes)
        if not self.stage.training.shard_teachers or devices == 1:
            return total
        return -(-total // devices) + max(self.teacher_sizes, default=0)

    def device_bytes(self, strategy: str | None, devices: int, is_checkpointed: bool) -> int:
        """All bytes of a device."""
        activations = self.activation_bytes(is_checkpointed, strategy)
        return self.on(strategy, devices).total + activations + self.teacher_bytes(devices) + self.feature_bytes

    @property
    def total_bytes(self) -> int:
        return self.device_bytes(self.machine.strategy, self.machine.devices, self.is_checkpointed)

    @property
    def num_micro_batches(self) -> int:
        return self.stage.training.gradient_accumulation_steps

    @property
    def samples_per_step(self) -> int:
        args = self.stage.training
        return self.samples.usual.num_samples * self.machine.devices * args.gradient_accumulation_steps

    @property
    def step_flops(self) -> int:
        """Operations of an optimizer step on one device, without recomputation."""
        return self.num_micro_batches * (self.teacher_flops + self.usual.flops)

    @property
    def steps(self) -> int | None:
        args, count = self.stage.training, self.samples.count
        if args.max_steps > 0:
            return args.max_steps
        if count is None:
            return None
        batches = math.ceil(count / (self.samples.usual.num_samples * self.machine.devices))
        per_epoch = max(1, math.ceil(batches / args.gradient_accumulation_steps))
        return math.ceil(args.num_train_epochs * per_epoch)

    @property
    def hours(self) -> float | None:
        if self.steps is None:
            return None
        return self.steps * self.step_flops / (GPUS[self.machine.gpu].peak * self.machine.mfu) / 3600

    @property
    def cached_values(self) -> int | None:
        """At most the number of values in a cache of the features of all samples, if their number is known."""
        if self.samples.count is None:
            return None
        usual = self.samples.usual
        return round(self.samples.count * usual.num_distilled / usual.num_images) * self.num_cached

    @property
    def checkpoint_bytes(self) -> int:
        if self.stage.model.has_frozen_base:  # only trained weights are saved, but shards contain all
            trained = self.weights.gradients + (self.weights.optimizer or 0)
            return trained + (0 if self.machine.strategy in (None, "ddp") else self.weights.weights)
        return checkpoint_bytes(self.weights, self.machine.strategy, self.compute_bytes)

    def warning(self) -> str | None:
        """A sentence if the stage does not fit, with a setting that makes it fit."""
        limit = GPUS[self.machine.gpu].memory - CONTEXT_BYTES
        if self.total_bytes <= limit:
            return None
        sentence = (
            f"Stage {self.stage.name} does not fit: it needs {self.total_bytes / GIB:.1f} GiB on each device, and the "
            f"{self.machine.gpu} has {limit / GIB:.1f} GiB for it."
        )
        options = [(self.machine.strategy, self.machine.devices, True)]
        counts = sorted(
            {self.machine.devices, *(number for number in (2, 4, 8, 16, 32, 64) if number > self.machine.devices)}
        )
        if self.stage.model.quantization is None:
            options += [("fsdp2", number, is_on) for number in counts for is_on in (self.is_checkpointed, True)]
        for strategy, devices, is_on in options:
            size = self.device_bytes(strategy, devices, is_on)
            if size <= limit:
                ways = [] if is_on == self.is_checkpointed else ["gradient checkpointing"]
                ways += [] if strategy == self.machine.strategy else [f"--strategy {strategy}"]
                ways += [] if devices == self.machine.devices else [f"--devices {devices}"]
                return f"{sentence} With {' and '.join(ways)} it needs {size / GIB:.1f} GiB."
        return f"{sentence} Lower per_device_train_batch_size and raise gradient_accumulation_steps."


def count_stage(
    stage: Stage,
    module: StudentWithObjective,
    teachers: Sequence[Teacher | ClassTokenTeacher],
    machine: Machine,
    num_tokens: int | None = None,
) -> StageCost:
    """
    Counts the costs of a stage.

    Args:
        stage (`Stage`):
            Stage of a recipe.
        module (`StudentWithObjective`):
            Outline on the meta device; the parts that the stage does not train are frozen.
        teachers (`list[Teacher]`):
            Outlines, as the objective prepares them.
        machine (`Machine`):
            Devices.
        num_tokens (`int`, *optional*):
            Mean positions of a sample, instead of the data's.

    Raises:
        RuntimeError: sizes in the model depend on data.
    """
    args, samples = stage.training, find_samples(stage, module.student, num_tokens)
    autocast = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
    grids = [teacher.grid for teacher in teachers]

    def trace(shape: BatchShape, is_checkpointed: bool) -> StepCost:
        return trace_outline(module, grids, shape, autocast, is_checkpointed)

    plain, checkpointed = (trace(samples.longest, is_checkpointed) for is_checkpointed in (False, True))
    usual, recomputing = plain, checkpointed
    if samples.usual != samples.longest:
        usual = recomputing = trace(samples.usual, is_checkpointed=False)
        if args.gradient_checkpointing:
            recomputing = trace(samples.usual, is_checkpointed=True)
    num_cached, num_distilled = cache_values(stage, module, teachers), samples.longest.num_distilled
    has_cache = stage.data.teacher_cache is not None
    if not module.objective.needs_features:
        running, feature_bytes = [], 0
    elif has_cache and OBJECTIVES[args.objective].cached_matching(stage.options) is not None:
        running, feature_bytes = [], num_distilled * num_cached * CACHED_BYTES
    else:
        running, feature_bytes = teachers, teacher_feature_bytes(teachers, num_distilled)
    return StageCost(
        stage,
        machine,
        samples,
        Weights.measure(module, args, stage.model.quantization),
        usual,
        recomputing.flops - usual.flops,
        plain,
        checkpointed,
        teacher_step_flops(running, samples.usual.num_distilled),
        [module_bytes(teacher.model) for teacher in running],
        feature_bytes,
        num_cached,
    )
