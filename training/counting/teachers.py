"""Parameters and FLOPs of the presets, counted at full size on the meta device without weights."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ...configuration.configuration_hawaii import HawaiiVisionConfig
from ...files.markdown_table import markdown_table
from ...files.user_error import UserError
from ...modeling_hawaii.vision_hawaii import HawaiiVisionModel
from ..teachers.config import TeacherConfig
from ..teachers.loading import outline_teacher
from ..teachers.presets import PRESETS, TEACHER_SETS, expand_teachers
from ..teachers.teacher import Teacher
from .architectures import known_architecture


@dataclass(frozen=True)
class TeacherCost:
    """
    Size and costs of a teacher.

    Args:
        name (`str`):
            Name.
        num_parameters (`int`):
            Parameters of the part that runs.
        image_size (`int`):
            Side of its input, in pixels.
        grid (`tuple[int, int, int]`):
            Height, width and channels of its features.
        flops (`int`):
            Floating-point operations for one image; a multiplication and an addition count as two.
    """

    name: str
    num_parameters: int
    image_size: int
    grid: tuple[int, int, int]
    flops: int


def count_flops(function: Callable) -> int:
    """Counts the floating-point operations of the matrix products, convolutions and attentions in a call."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        function()
    return counter.get_total_flops()


def count_parameters(module: nn.Module) -> int:
    """Counts the parameters of a module, trainable or not; shared parameters count once."""
    return sum(parameter.numel() for parameter in module.parameters())


def outline(config: TeacherConfig) -> Teacher:
    """Builds a teacher at full size on the meta device; nothing is downloaded for the presets."""
    return outline_teacher(config, known_architecture(config.checkpoint))


def teacher_cost(config: TeacherConfig) -> TeacherCost:
    """Counts the parameters and operations of a teacher for one image."""
    teacher = outline(config)
    image = torch.zeros(1, 3, teacher.image_size, teacher.image_size, dtype=torch.uint8, device="meta")
    num_parameters, flops = count_parameters(teacher.model), count_flops(lambda: teacher(image))
    return TeacherCost(teacher.name, num_parameters, teacher.image_size, teacher.grid, flops)


def student_flops(num_teachers: int) -> int:
    """Counts the operations of the paper's encoder for one image, with routing."""
    with torch.device("meta"):
        config = HawaiiVisionConfig(num_teacher_adapters=num_teachers)
        student = HawaiiVisionModel(config).eval()
        image = torch.zeros(1, 3, config.image_size, config.image_size)
        return count_flops(lambda: student(image))


def describe_presets() -> str:
    """
    Returns Markdown tables of the presets and of the paper's sets, with costs relative to the student's. If rows have
    no numbers, a last line says what is missing, such as timm.
    """
    costs, errors = {}, {}
    for name in PRESETS:
        (config,) = expand_teachers(name)
        try:
            costs[name] = teacher_cost(config)
        except UserError as error:
            errors[name] = error
    student = student_flops(len(TEACHER_SETS["hawaii"]))

    def row(name: str) -> list[str]:
        if name not in costs:
            return [name, *["-"] * 6]
        cost: TeacherCost = costs[name]
        height, width, channels = cost.grid
        return [
            name,
            f"{cost.num_parameters / 1e6:.1f} M",
            f"{cost.image_size} x {cost.image_size}",
            f"{height} x {width}",
            str(channels),
            f"{cost.flops / 1e9:.0f}",
            f"{cost.flops / student:.2f}",
        ]

    def set_row(name: str, members: tuple[str, ...]) -> list[str]:
        if not all(member in costs for member in members):
            return [name, ", ".join(members), *["-"] * 3]
        flops = sum(costs[member].flops for member in members)
        return [
            name,
            ", ".join(members),
            f"{sum(costs[member].num_parameters for member in members) / 1e6:.1f} M",
            f"{flops / 1e9:.0f}",
            f"{flops / student_flops(len(members)):.2f}",
        ]

    teachers = markdown_table(
        ["teacher", "parameters", "input", "grid", "channels", "GFLOPs", "x student"],
        [row(name) for name in PRESETS],
    )
    sets = markdown_table(
        ["set", "teachers", "parameters", "GFLOPs", "x student"],
        [set_row(name, members) for name, members in TEACHER_SETS.items()],
        num_text_columns=2,
    )
    note = f"For one image; a pass of the student takes {student / 1e9:.0f} GFLOPs."
    if errors:
        note += f"\n\nNot counted: {', '.join(errors)}. {next(iter(errors.values()))}"
    return f"{teachers}\n\n{sets}\n\n{note}"
