"""What an objective is: a module that makes a loss of a student, what the teachers see, and a batch."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ...files.user_error import UserError
from ..teachers.teacher import Teacher
from .encoder_passes import Student


# Shapes: I images, m student tokens, D width.


def weigh_images(batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """
    What each image of a batch counts in a mean over all images of the step.

    Returns:
        Two tensors of shape `(num_images,)`: whether an image counts or only fills the batch, and its weight.
    """
    is_counted = batch["image_index"] >= 0
    return is_counted, is_counted.float() / batch["num_images"].clamp(min=1)


@torch.no_grad()
def mean_variances(features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    Variance over images and tokens, mean over channels, of features `(num_images, num_tokens, channels)` by name: it
    tells of what says the same everywhere, as targets that a projection makes can come to do.
    """
    return {
        f"variance/{name}": values.float().var(dim=(0, 1), correction=0).mean() for name, values in features.items()
    }


def finish_terms(
    terms: dict[str, torch.Tensor], followed: dict[str, torch.Tensor], weight: torch.Tensor
) -> dict[str, torch.Tensor]:
    """
    The terms of a loss as they are logged.

    Args:
        terms (`dict[str, torch.Tensor]`):
            Each a share of the step's value.
        followed (`dict[str, torch.FloatTensor]`):
            Features whose [`mean_variances`] are told as well.
        weight (`torch.FloatTensor` of shape `(num_images,)`):
            What each image counts in the step's mean, see [`weigh_images`]; their sum is the part of the step.
    """
    variances = {name: value * weight.sum() for name, value in mean_variances(followed).items()}
    return {name: value.detach() for name, value in (terms | variances).items()}


class Objective(nn.Module, ABC):
    """
    Base of the objectives. Each is made with the training arguments, the student, of which it reads the sizes, and the
    grids of the teachers by name; its modules are what training alone needs.

    Attributes:
        uses_teachers (`bool`):
            Whether it learns from teachers. Where not, those of the recipe are not loaded.
        has_adapters (`bool`):
            Whether its student may have adapters.
        own_lambda_2 (`float`):
            `lambda_2` where the recipe says nothing.
        note (`str`):
            What its modules are, said beside their number by a dry run.
    """

    uses_teachers = True
    has_adapters = True
    own_lambda_2 = 0.0
    note = "The projections are the objective's: they learn in training, and vanish with the teachers."

    @staticmethod
    def vision_fields(num_teachers: int) -> dict[str, Any]:
        """What it decides of the student's [`HawaiiVisionConfig`] where the recipe says nothing else."""
        return {"num_teacher_adapters": 0, "num_general_adapters": 0}

    @staticmethod
    def prepare_teachers(teachers: Sequence[Teacher]) -> list:
        """The teachers as it asks them; each gives its features as a grid unless it says otherwise."""
        return list(teachers)

    @staticmethod
    def projections_learn(trainable: list[str]) -> bool:
        """Whether its modules learn in a stage in which the parts `trainable` do."""
        return "projections" in trainable

    def standardize(self, teacher_features: list) -> None:
        """Adapts what begins with random weights to what the teachers see in some images."""

    @abstractmethod
    def forward(
        self, student: Student, teacher_features: list, batch: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """
        Args:
            student (`HawaiiForConditionalGeneration` or `HawaiiVisionModel`):
                The model that learns.
            teacher_features (`list[torch.FloatTensor]`):
                Of each teacher, `(num_images, height, width, channels)`.
            batch (`dict`):
                What the collator makes, with `num_label_tokens` and `num_images`: the counts over all micro-batches
                and processes of the step, which make accumulation equal to one large batch.

        Returns:
            The loss and its terms, each a share of the step's value: over the micro-batches and processes they sum up.
        """


def check_has_teachers(teacher_grids: dict, objective: str) -> None:
    """Raises a `ValueError` where there is nobody to learn from."""
    if not teacher_grids:
        raise UserError(
            f"The recipe names no teachers, and the objective {objective} has nothing else to distill: name some "
            "under teachers."
        )
