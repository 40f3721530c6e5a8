"""The objectives by the names used in recipes, and the module that joins one to a student."""

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
    """The module that is trained: DDP, FSDP and ZeRO each wrap one module that contains every trainable parameter."""

    def __init__(self, student: Student, objective: nn.Module):
        super().__init__()
        self.student = student
        self.objective = objective
        # FSDP shards each layer of the encoder and of the language model by itself, and the rest together.
        classes = {type(module).__name__ for module in student.modules()}
        self._no_split_modules = sorted(classes & set(student._no_split_modules))

    def forward(self, teacher_features: list[torch.Tensor], batch: dict):
        return self.objective(self.student, teacher_features, batch)

    def get_input_embeddings(self) -> nn.Module:
        """The embeddings of words, to which `neftune_noise_alpha` adds noise."""
        return self.student.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module | None:
        """The head; accelerate shards it together with the embeddings if both are one matrix."""
        return self.student.get_output_embeddings()

    # The trainer calls one of these: transformers 5.23 renamed the method.
    def activation_checkpointing_enable(self, **kwargs):
        self.student.activation_checkpointing_enable(**kwargs)

    def gradient_checkpointing_enable(self, **kwargs):
        self.student.gradient_checkpointing_enable(**kwargs)
