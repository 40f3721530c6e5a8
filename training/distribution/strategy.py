"""How a run is distributed: what accelerate made of the launcher's settings, and what a recipe demands."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedType,
    FullyShardedDataParallelPlugin,
    GradientAccumulationPlugin,
    gather_object,
)
from transformers.integrations import deepspeed

from ...files.user_error import UserError
from ..recipes.arguments import SHARDED_MODELS, HawaiiTrainingArguments
from ..recipes.recipe import Stage


# Where accelerate reads what its launcher was configured for.
REQUESTS = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed"}
GATHERING = "stage3_gather_16bit_weights_on_model_save"
PRECISIONS = {"bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True)
class Strategy:
    """
    How a run is distributed. As text, it is the first line of the run.

    Args:
        name (`str`):
            `single`, `ddp`, `fsdp2` (`fsdp1`) or `zero2` (`zero0`, `zero1`, `zero3`); accelerate's own name for what
            it has beyond these.
        num_processes, num_machines (`int`):
            Of the whole run.
        device (`str`):
            `CPU`, or the name of the accelerator; several names where the machines differ.
        precision (`str`):
            Of the computation; the weights' own if it is not mixed.
        refusal (`str`):
            A sentence about settings of the launcher that have no effect; empty if all have.
    """

    name: str
    num_processes: int
    num_machines: int
    device: str
    precision: str
    refusal: str

    def __str__(self) -> str:
        processes = f"{self.num_processes} process{'es' if self.num_processes > 1 else ''}"
        machines = f"{self.num_machines} machine{'s' if self.num_machines > 1 else ''}"
        return (
            f"Strategy {self.name}: {processes} on {machines}, {self.device}, {self.precision}. {self.refusal}".strip()
        )


def create_accelerator(args: HawaiiTrainingArguments) -> Accelerator:
    """
    Creates the accelerator that transformers' Trainer will create from the same arguments.

    There can be only one: the Trainer needs arguments that are built again, which resets accelerate's state.
    """
    plugin = None if args.fsdp_plugin_args is None else FullyShardedDataParallelPlugin(**args.fsdp_plugin_args)
    return Accelerator(
        mixed_precision=args.mixed_precision,
        deepspeed_plugin=args.deepspeed_plugin,
        fsdp_plugin=plugin,
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),  # the Trainer counts them itself
    )


def _name_strategy(accelerator: Accelerator) -> str:
    kind = accelerator.distributed_type
    if kind == DistributedType.FSDP:
        return f"fsdp{accelerator.state.fsdp_plugin.fsdp_version}"
    if kind == DistributedType.DEEPSPEED:
        return f"zero{accelerator.state.deepspeed_plugin.zero_stage}"
    if kind == DistributedType.NO:
        return "single"
    return "ddp" if kind.startswith("MULTI_") else kind.lower()


def _explain_refusal(accelerator: Accelerator, name: str) -> str:
    """Says which settings of the launcher have no effect, and why."""
    asked = [library for variable, library in REQUESTS.items() if os.environ.get(variable, "").lower() == "true"]
    if asked and name in ("single", "ddp"):
        reason = (
            "accelerate does not shard on CPUs, and this run uses them, because of use_cpu or for want of a GPU"
            if accelerator.device.type == "cpu"
            else "accelerate shards only what several processes share: start one per GPU"
        )
        return f"The launcher asked for {asked[0]}, but {reason}."
    if accelerator.num_processes == 1 and os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true":
        return (
            "On CPUs `accelerate launch` starts one process unless MPI starts more, whatever its num_processes; "
            "`torchrun --nproc_per_node N -m hawaii train` starts N."
        )
    return ""


def describe_strategy(accelerator: Accelerator, dtype: str = "float32") -> Strategy:
    """
    Describes how a run is distributed. Every process must call it.

    Args:
        accelerator (`Accelerator`):
            Joins the processes.
        dtype (`str`, *optional*, defaults to `"float32"`):
            Precision of the student's weights.

    Raises:
        UserError: the launcher started several processes, but accelerate did not join them, so each would train alone;
            or FSDP would recompute activations with other dropout.
    """
    started = int(os.environ.get("WORLD_SIZE", 1))
    if started != accelerator.num_processes:
        raise UserError(
            f"The launcher started {started} processes, but each takes itself for one of {accelerator.num_processes}, "
            "so all would write the same files: on CPUs, set use_cpu: true in the recipe; otherwise check that every "
            "process sees its GPU."
        )
    if accelerator.distributed_type == DistributedType.FSDP and accelerator.state.fsdp_plugin.activation_checkpointing:
        raise UserError(
            "fsdp_activation_checkpointing is true, but accelerate then recomputes layers with other random numbers, "
            "so gradients are wrong where there is dropout: set it to false, and activation_checkpointing: true in "
            "the recipe."
        )
    device = accelerator.device
    names = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    # Each machine has one first process.
    found = gather_object([(accelerator.is_local_main_process, names)])
    name, mixed = _name_strategy(accelerator), accelerator.mixed_precision
    return Strategy(
        name=name,
        num_processes=accelerator.num_processes,
        num_machines=sum(is_first for is_first, _ in found),
        device=" and ".join(sorted({each for _, each in found})),
        precision=dtype if mixed == "no" else f"{PRECISIONS.get(mixed, mixed)} with {dtype} weights",
        refusal=_explain_refusal(accelerator, name),
    )


def check_strategy(strategy: Strategy, stage: Stage) -> None:
    """
    Checks that a stage is distributed as its recipe demands, and that this strategy can do what the stage needs.

    Raises:
        UserError: it is not, or cannot; names what it got, why, and how to start it.
    """
    args = stage.training
    if strategy.name in SHARDED_MODELS:
        if stage.model.quantization is not None:
            raise UserError(
                f"quantization {stage.model.quantization} is for models that are not sharded (one process, DDP or "
                f"ZeRO-2), but this run has {strategy.name}: leave one of them out."
            )
        if stage.data.eval_data_path is not None:
            raise UserError(
                "A sharded model (FSDP, ZeRO-3) cannot answer questions during training: leave out eval_data_path and "
                "eval_strategy, and evaluate its checkpoints with `hawaii evaluate`."
            )
    plugin = args.deepspeed_plugin
    if strategy.name == "zero3" and not plugin.deepspeed_config["zero_optimization"].get(GATHERING):
        raise UserError(
            f"DeepSpeed's {GATHERING} is not true, so the model could not be saved: set it, or zero3_save_16bit_model "
            "of accelerate's configuration, to true."
        )
    name, count = strategy.name, strategy.num_processes
    launch = f"accelerate launch --config_file training/accelerate/{args.strategy}.yaml -m hawaii train RECIPE"
    remedy = "without a launcher" if args.strategy == "single" else f"with `{launch}`"
    if args.strategy not in (None, name):
        problem = f"demands strategy: {args.strategy}, but this run has {name}"
    elif args.num_processes not in (None, count):
        problem = f"demands num_processes: {args.num_processes}, but this run has {count}"
        remedy = f"with {args.num_processes} processes"
    else:
        return
    raise UserError(f"The recipe {problem}. {strategy} Start it {remedy}, or take the demand out of the recipe.")


@contextmanager
def whole_weights(args: HawaiiTrainingArguments) -> Iterator[None]:
    """
    Inside, `from_pretrained` loads whole weights. While a ZeRO-3 configuration is alive it would partition them, but
    only the module that is trained may be: DeepSpeed partitions that when training begins.
    """
    deepspeed.unset_hf_deepspeed_config()  # also one that an earlier run of this process left
    try:
        yield
    finally:
        if args.deepspeed_plugin is not None:
            config = args.hf_deepspeed_config if args.deepspeed else args.deepspeed_plugin.dschf
            deepspeed.set_hf_deepspeed_config(config)
