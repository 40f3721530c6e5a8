"""Base of the objectives: a module that computes a loss from a student, the teachers' features and a batch."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from ...files.user_error import UserError
from ..teachers.teacher import Teacher
from .encoder_passes import Student


# Shapes: S squares (an image is one square, or its tiles), I squares that teachers see, m student tokens, D width.


def select_distilled(batch: dict[str, torch.Tensor], values: torch.Tensor) -> torch.Tensor:
    """
    Selects those squares of a batch that teachers see: all of them, or the whole pictures alone.

    Args:
        batch (`dict`):
            Output of the collator.
        values (`torch.Tensor` of shape `(num_squares, ...)`):
            A value of each square, such as its `image_index` or the student's features.
    """
    index = batch.get("distilled_index")
    return values if index is None else values.index_select(0, index)


def weigh_images(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """
    The weight of each square that teachers see in the mean over all of the step, `(num_distilled,)`; zero for one that
    only fills the batch.
    """
    is_counted = select_distilled(batch, batch["image_index"]) >= 0
    return is_counted.float() / batch["num_squares"].clamp(min=1)


@torch.no_grad()
def make_logged_terms(
    terms: dict[str, torch.Tensor], monitored: dict[str, torch.Tensor], weight: torch.Tensor
) -> dict[str, torch.Tensor]:
    """
    The logged terms of a loss, without gradient.

    Args:
        terms (`dict[str, torch.Tensor]`):
            Each a share of the step's value.
        monitored (`dict[str, torch.FloatTensor]`):
            Features `(num_squares, num_tokens, channels)`, whose variance over squares and tokens, averaged over
            channels, is logged as well. Near zero means that the features have collapsed to a constant.
        weight (`torch.FloatTensor` of shape `(num_distilled,)`):
            Weight of each square in the step's mean, see [`weigh_images`]; the sum is the batch's share of the step.
    """
    logged = {name: value.detach() for name, value in terms.items()}
    for name, features in monitored.items():
        variance = features.float().var(dim=(0, 1), correction=0).mean()
        logged[f"variance/{name}"] = variance * weight.sum()
    return logged


@dataclass
class ObjectiveOptions:
    """
    Base of an objective's options: its fields are keys of a recipe.

    Args:
        lambda_1 (`float`, *optional*, defaults to 0.5):
            Weight of the distillation losses (eq. 7); unused by an objective without teachers.
    """

    lambda_1: float = 0.5

    # Options that decide which modules are built: they must be equal in all stages, but a later stage may leave out
    # entries of a list.
    module_options: ClassVar[tuple[str, ...]] = ()


class Objective(nn.Module, ABC):
    """
    Base of the objectives. Its modules are needed in training only.

    Args:
        options (`ObjectiveOptions`):
            An instance of the objective's `options_class`.
        student (`HawaiiForConditionalGeneration` or `HawaiiVisionModel`):
            Gives the sizes; the objective keeps no reference to it.
        teacher_grids (`dict[str, tuple[int, int, int]]`):
            Height, width and channels of each teacher's features, by name.

    Attributes:
        names (`list[str]`):
            Names of the teachers.
        options_class (`type[ObjectiveOptions]`):
            Dataclass of its options.
        uses_teachers (`bool`):
            Whether it learns from teachers. If not, the recipe's teachers are not loaded.
        has_adapters (`bool`):
            Whether its student may have adapters.
        note (`str`):
            Describes its modules in a dry run.
    """

    options_class: type[ObjectiveOptions] = ObjectiveOptions
    uses_teachers = True
    has_adapters = True
    note = "The projections belong to the objective: they are trained, and never saved with the student."

    def __init__(self, options: ObjectiveOptions, student: Student, teacher_grids: dict[str, tuple[int, int, int]]):
        super().__init__()
        self.options = options
        self.names = list(teacher_grids)

    @property
    def needs_features(self) -> bool:
        """Whether the loss depends on the teachers' features. If not, a later stage runs without teachers."""
        return self.uses_teachers

    @staticmethod
    def vision_fields(num_teachers: int) -> dict[str, Any]:
        """Defaults of the student's [`HawaiiVisionConfig`] under this objective."""
        return {"num_teacher_adapters": 0, "num_general_adapters": 0}

    @staticmethod
    def prepare_teachers(teachers: Sequence[Teacher]) -> list:
        """Wraps the teachers if the objective needs more than their feature grids."""
        return list(teachers)

    @staticmethod
    def cached_matching(options: ObjectiveOptions) -> str | None:
        """
        Returns the argument of [`match_grid`] with which the objective reads the teachers' features, or `None` if it
        needs more than the features on the student's grid, so that no cache has them.
        """
        return None

    @staticmethod
    def projections_learn(trainable: list[str]) -> bool:
        """Whether its modules learn in a stage that trains the parts `trainable`."""
        return "projections" in trainable

    def standardize(self, teacher_features: list) -> None:
        """Rescales fresh projections so that targets start with mean 0 and variance 1."""

    def set_trainable(self, trainable: list[str]) -> None:
        """Trains or freezes the projections of the teachers' features, the part `projections`."""
        self.requires_grad_("projections" in trainable)

    @abstractmethod
    def forward(
        self, student: Student, teacher_features: list, batch: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """
        Args:
            student (`HawaiiForConditionalGeneration` or `HawaiiVisionModel`):
                The model that is trained.
            teacher_features (`list[torch.FloatTensor]`):
                Features of each teacher, `(num_distilled, height, width, channels)`, of the squares that
                [`select_distilled`] selects.
            batch (`dict`):
                Output of the collator, with `num_label_tokens` and `num_squares`: the counts of labels and of squares
                that teachers see over all micro-batches and processes of the step, which make accumulation equal to
                one large batch.

        Returns:
            The loss and its terms, each the share of one micro-batch: the sum over micro-batches and processes is the
            value of the step.
        """


def check_has_teachers(teacher_grids: dict, objective: str) -> None:
    """Raises a `UserError` if no teachers are configured."""
    if not teacher_grids:
        raise UserError(
            f"The recipe names no teachers, and the objective {objective} needs some: name them under teachers."
        )
