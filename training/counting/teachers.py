"""What the experts of the presets are and cost at full size, counted on the meta device: no weights are needed."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ...configuration.configuration_hawaii import HawaiiVisionConfig
from ...files.markdown_table import markdown_table
from ...files.sources import check_source
from ...modeling_hawaii.vision_hawaii import HawaiiVisionModel
from ..teachers.config import TeacherConfig
from ..teachers.loading import outline_teacher
from ..teachers.presets import PRESETS, TEACHER_SETS, expand_teachers
from ..teachers.teacher import Teacher
from ..teachers.timm_models import is_timm
from .architectures import read_architecture


@dataclass(frozen=True)
class TeacherCost:
    """
    What one teacher is and costs.

    Args:
        name (`str`):
            Its name.
        num_parameters (`int`):
            Weights of the part that runs.
        image_size (`int`):
            Side of the image it is shown, in pixels.
        grid (`tuple[int, int, int]`):
            Height, width and channels of its features.
        flops (`int`):
            Floating-point operations for one image, a multiplication and an addition being two.
    """

    name: str
    num_parameters: int
    image_size: int
    grid: tuple[int, int, int]
    flops: int


def count_flops(function: Callable) -> int:
    """Floating-point operations of the matrix products, convolutions and attentions of one call."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        function()
    return counter.get_total_flops()


def count_parameters(module: nn.Module) -> int:
    """Parameters of a module, learning or not; one that is used twice counts once."""
    return sum(parameter.numel() for parameter in module.parameters())


def outline(config: TeacherConfig) -> Teacher:
    """The teacher of a recipe at its full size on the meta device: all but its weights."""
    check_source("teacher", config.checkpoint)
    architecture = None if is_timm(config.checkpoint) else read_architecture(config.checkpoint)
    return outline_teacher(config, architecture)


def teacher_cost(config: TeacherConfig) -> TeacherCost:
    """Counts one teacher, for one image."""
    teacher = outline(config)
    image = torch.zeros(1, 3, teacher.image_size, teacher.image_size, dtype=torch.uint8, device="meta")
    num_parameters, flops = count_parameters(teacher.model), count_flops(lambda: teacher(image))
    return TeacherCost(teacher.name, num_parameters, teacher.image_size, teacher.grid, flops)


def student_flops(num_teachers: int) -> int:
    """Floating-point operations of the paper's student for one image, its routers at work."""
    with torch.device("meta"):
        config = HawaiiVisionConfig(num_teacher_adapters=num_teachers)
        student = HawaiiVisionModel(config).eval()
        image = torch.zeros(1, 3, config.image_size, config.image_size)
        return count_flops(lambda: student(image))


def describe_presets() -> str:
    """Two Markdown tables: each preset, and each of the paper's sets beside the student's own pass."""
    costs = {name: teacher_cost(config) for name in PRESETS for config in expand_teachers(name)}
    own = student_flops(len(TEACHER_SETS["hawaii"]))

    def row(name: str, cost: TeacherCost) -> list[str]:
        height, width, channels = cost.grid
        return [
            name,
            f"{cost.num_parameters / 1e6:.1f} M",
            f"{cost.image_size} x {cost.image_size}",
            f"{height} x {width}",
            str(channels),
            f"{cost.flops / 1e9:.0f}",
            f"{cost.flops / own:.2f}",
        ]

    def sum_up(name: str, members: tuple[str, ...]) -> list[str]:
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
        [row(name, cost) for name, cost in costs.items()],
    )
    sets = markdown_table(
        ["set", "teachers", "parameters", "GFLOPs", "x student"],
        [sum_up(name, members) for name, members in TEACHER_SETS.items()],
    )
    return f"{teachers}\n\n{sets}\n\nFor one image; the student's own pass takes {own / 1e9:.0f} GFLOPs."
