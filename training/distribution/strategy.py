"""How a run is distributed: the strategy that accelerate chose, and the one that a recipe demands."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

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


# Environment variables with which accelerate's launcher requests a library.
REQUESTS = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed"}
GATHERING = "stage3_gather_16bit_weights_on_model_save"
CONFIGS = Path(__file__).parents[1] / "accelerate"  # settings for accelerate's launcher, one file per strategy
PRECISIONS = {"bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True)
class Strategy:
    """
    How a run is distributed. As text, it is the first line of the run.

    Args:
        name (`str`):
            `single`, `ddp`, `fsdp2` (`fsdp1`) or `zero2` (`zero0`, `zero1`, `zero3`); accelerate's own name for any
            other strategy.
        num_processes, num_machines (`int`):
            Numbers of processes and machines of the whole run.
        device (`str`):
            `CPU`, or the name of the accelerator; several names where the machines differ.
        precision (`str`):
            Precision of the computation; that of the weights if it is not mixed.
        refusal (`str`):
            A sentence about settings of the launcher that have no effect; empty if there are none.
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

    Only one of them can exist: the arguments are built again for the Trainer, which resets accelerate's state.
    """
    plugin = None if args.fsdp_plugin_args is None else FullyShardedDataParallelPlugin(**args.fsdp_plugin_args)
    return Accelerator(
        mixed_precision=args.mixed_precision,
        deepspeed_plugin=args.deepspeed_plugin,
        fsdp_plugin=plugin,
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),  # the Trainer counts micro-batches
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
    """Returns a sentence about settings of the launcher that have no effect; empty if there are none."""
    asked = [library for variable, library in REQUESTS.items() if os.environ.get(variable, "").lower() == "true"]
    if asked and name in ("single", "ddp"):
        reason = (
            "accelerate does not shard on CPUs, and this run uses the CPU, because use_cpu is set or there is no GPU"
            if accelerator.device.type == "cpu"
            else "accelerate shards a model only over several processes: start one process per GPU"
        )
        return f"The launcher asked for {asked[0]}, but {reason}."
    if accelerator.num_processes == 1 and os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true":
        return (
            "On CPUs, `accelerate launch` ignores num_processes and starts one process, unless MPI starts more; "
            "`torchrun --nproc_per_node N -m hawaii train` starts N processes."
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
            or FSDP would recompute activations with other random numbers for dropout.
    """
    started = int(os.environ.get("WORLD_SIZE", 1))
    if started != accelerator.num_processes:
        raise UserError(
            f"The launcher started {started} processes, but accelerate did not connect them (it counts "
            f"{accelerator.num_processes}), so all would write the same files: on CPUs, set use_cpu: true in the "
            "recipe; otherwise check that every process sees its GPU."
        )
    if accelerator.distributed_type == DistributedType.FSDP and accelerator.state.fsdp_plugin.activation_checkpointing:
        raise UserError(
            "fsdp_activation_checkpointing is true, but accelerate then recomputes layers with other random numbers, "
            "so gradients are wrong where there is dropout: set it to false, and gradient_checkpointing: true in "
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
        UserError: it is not, or the strategy cannot. The message names the strategy, the reason and the remedy.
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
    if args.fsdp and strategy.name == "single":
        raise UserError(
            "fsdp is given, but this run has one process, and a model is sharded only over several: leave fsdp out, "
            f"and start with `accelerate launch --config_file {CONFIGS / 'fsdp2.yaml'} -m hawaii train RECIPE`."
        )
    plugin = args.deepspeed_plugin
    if strategy.name == "zero3" and not plugin.deepspeed_config["zero_optimization"].get(GATHERING):
        raise UserError(
            f"DeepSpeed's {GATHERING} is not true, so the model could not be saved: set it, or zero3_save_16bit_model "
            "of accelerate's configuration, to true."
        )
    name, count = strategy.name, strategy.num_processes
    launch = f"accelerate launch --config_file {CONFIGS / str(args.strategy)}.yaml -m hawaii train RECIPE"
    remedy = "without a launcher" if args.strategy == "single" else f"with `{launch}`"
    if args.strategy not in (None, name):
        problem = f"demands strategy: {args.strategy}, but this run has {name}"
    elif args.num_processes not in (None, count):
        problem = f"demands num_processes: {args.num_processes}, but this run has {count}"
        remedy = f"with {args.num_processes} processes"
    else:
        return
    raise UserError(f"The recipe {problem}. {strategy} Start it {remedy}, or remove this demand from the recipe.")


@contextmanager
def whole_weights(args: HawaiiTrainingArguments) -> Iterator[None]:
    """
    Inside the `with` block, `from_pretrained` loads whole weights. While a ZeRO-3 configuration is set, it would
    partition them, but only the trained module may be partitioned: DeepSpeed does that when training begins.
    """
    deepspeed.unset_hf_deepspeed_config()  # also that of an earlier run in this process
    try:
        yield
    finally:
        if args.deepspeed_plugin is not None:
            config = args.hf_deepspeed_config if args.deepspeed else args.deepspeed_plugin.dschf
            deepspeed.set_hf_deepspeed_config(config)
