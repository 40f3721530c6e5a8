"""What can be learned, by the name that a recipe gives it, and the one module that trains."""

import torch
from torch import nn

from ..baselines.llava import LlavaObjective
from ..baselines.move_kd import MoveKdObjective
from ..baselines.radio import RadioObjective
from ..objectives.encoder_passes import Student
from ..objectives.hawaii import HawaiiObjective
from ..objectives.objective import Objective


OBJECTIVES: dict[str, type[Objective]] = {
    "hawaii": HawaiiObjective,
    "llava": LlavaObjective,
    "move_kd": MoveKdObjective,
    "radio": RadioObjective,
}


class StudentWithObjective(nn.Module):
    """What the trainer wraps: DDP, FSDP and ZeRO each wrap one module, and all that trains must be under it."""

    def __init__(self, student: Student, objective: nn.Module):
        super().__init__()
        self.student = student
        self.objective = objective

    def forward(self, teacher_features: list[torch.Tensor], batch: dict):
        return self.objective(self.student, teacher_features, batch)

    # The trainer calls the one or the other: transformers 5.23 renamed it.
    def activation_checkpointing_enable(self, **kwargs):
        self.student.activation_checkpointing_enable(**kwargs)

    def gradient_checkpointing_enable(self, **kwargs):
        self.student.gradient_checkpointing_enable(**kwargs)
