"""Tables of the costs of stages."""

from transformers.training_args import OptimizerNames

from ...files.markdown_table import markdown_table
from .costs import GIB, StageCost
from .gpus import GPUS
from .step import PARTS


def describe_costs(costs: list[StageCost]) -> str:
    """Tables of memory, operations and the run, with a column for each stage, and sentences of warning."""
    machine, names = costs[0].machine, [cost.stage.name for cost in costs]

    def gib(size: int) -> str:
        return f"{size / GIB:.2f}"

    def tera(flops: float) -> str:
        return f"{flops / 1e12:.3f}"

    placed = [cost.on(machine.strategy, machine.devices) for cost in costs]
    memory = [["weights", *(gib(item.weights) for item in placed)]]
    memory.append(["gradients", *(gib(item.gradients) for item in placed)])
    optimizer = [
        "not known" if cost.weights.optimizer is None else gib(item.optimizer) for cost, item in zip(costs, placed)
    ]
    memory.append([f"optimizer states ({OptimizerNames(costs[0].stage.training.optim).value})", *optimizer])
    if machine.strategy is not None:
        memory.append(["buffers of the communication", *(gib(item.buffers) for item in placed)])
    for is_on in (False, True):
        title = f"activations with{'' if is_on else 'out'} gradient checkpointing"
        memory.append([title, *(gib(cost.activation_bytes(is_on, machine.strategy)) for cost in costs)])
    memory.append(["teachers", *(gib(cost.teacher_bytes(machine.devices)) for cost in costs)])
    memory.append(["features of the teachers", *(gib(cost.feature_bytes) for cost in costs)])
    ways = ["with" if cost.is_checkpointed else "without" for cost in costs]
    memory.append(
        [
            f"all, {ways[0] if len(set(ways)) == 1 else 'with or without'} gradient checkpointing",
            *(("" if cost.weights.optimizer is not None else "more than ") + gib(cost.total_bytes) for cost in costs),
        ]
    )

    flops = [["teachers", *(tera(cost.num_micro_batches * cost.teacher_flops) for cost in costs)]]
    for name in ("forward", "backward"):
        for part in PARTS:
            values = [cost.num_micro_batches * getattr(cost.usual, name)[part] for cost in costs]
            if any(values):
                flops.append([f"{part}, {name}", *map(tera, values)])
    flops.append(["all", *(tera(cost.step_flops) for cost in costs)])
    if any(cost.is_checkpointed for cost in costs):
        values = [cost.num_micro_batches * cost.recomputation if cost.is_checkpointed else 0 for cost in costs]
        flops.append(["recomputation, in addition", *map(tera, values)])

    def known(value, form: str) -> str:
        return "not known" if value is None else form.format(value)

    counts = [cost.steps * cost.samples_per_step if cost.steps is not None else None for cost in costs]
    run = [["samples of the data", *(known(cost.samples.count, "{:,}") for cost in costs)]]
    run.append(["samples of a step", *(f"{cost.samples_per_step:,}" for cost in costs)])
    run.append(["positions of a sample, padded", *(f"{cost.samples.usual.num_tokens:,}" for cost in costs)])
    run.append(["steps", *(known(cost.steps, "{:,}") for cost in costs)])
    run.append(["samples of all steps", *(known(count, "{:,}") for count in counts)])
    run.append(["hours", *(known(cost.hours, "{:.2f}") for cost in costs)])
    run.append(["GiB of a checkpoint", *(gib(cost.checkpoint_bytes) for cost in costs)])
    if any(cost.num_cached for cost in costs):
        for name, size in (("int8", 1), ("bfloat16", 2)):
            sizes = [None if cost.cached_values is None else cost.cached_values * size for cost in costs]
            run.append(
                [
                    f"GiB of a cache of the teachers' features in {name}, at most",
                    *(known(item and item / GIB, "{:.2f}") for item in sizes),
                ]
            )

    notes = [f"Stage {cost.stage.name}: {cost.samples.note}" for cost in costs if cost.samples.note]
    half = [cost.stage.name for cost in costs if not cost.is_half]
    if half:
        notes.append(
            f"{', '.join(half)}: computations are in float32 without bf16 or fp16, for which the peak of a "
            f"{machine.gpu} is lower than the one that the hours assume."
        )
    hours = [cost.hours for cost in costs if cost.hours is not None]
    total = f" All stages take {sum(hours):.2f} hours." if len(hours) == len(costs) else ""
    notes.append(
        f"Hours at {machine.mfu:.0%} of the bfloat16 peak of each {machine.gpu} "
        f"({GPUS[machine.gpu].peak / 1e12:.0f} TFLOP/s); loading data, evaluations and checkpoints are not "
        f"included.{total}"
    )
    warnings = [warning for cost in costs if (warning := cost.warning())]
    return "\n\n".join(
        [
            f"Memory of each device, {machine}, in GiB, for a batch of the longest samples:",
            markdown_table(["memory", *names], memory),
            "Operations of a step on each device, in TFLOP:",
            markdown_table(["part", *names], flops),
            markdown_table(["run", *names], run),
            *notes,
            *warnings,
        ]
    )
