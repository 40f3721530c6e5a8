"""LLaVA's objective: the loss of the answers, without teachers or adapters."""

from dataclasses import dataclass

import torch

from ...files.user_error import UserError
from ...modeling_hawaii.vision_hawaii import HawaiiVisionModel
from ..objectives.encoder_passes import routed_pass
from ..objectives.objective import Objective, ObjectiveOptions
from ..objectives.text_loss import text_loss


@dataclass
class LlavaOptions(ObjectiveOptions):
    """Only the options that all objectives share."""


class LlavaObjective(Objective):
    """
    `L = L_gen` (eq. 1): the baseline, without projections. The student has no adapters, unless it starts from an
    encoder with adapters.

    Raises:
        UserError: the student is an encoder without a language model.
    """

    options_class = LlavaOptions
    uses_teachers = False
    has_adapters = False
    note = "The objective has no projections and no teachers."

    def __init__(self, options: LlavaOptions, student, teacher_grids):
        super().__init__(options, student, teacher_grids)
        if isinstance(student, HawaiiVisionModel):
            raise UserError(
                "The objective llava trains on answers only, but the recipe names no language model: name a "
                "language_model or a text_config, or choose another objective."
            )

    @staticmethod
    def projections_learn(trainable: list[str]) -> bool:
        return False

    def forward(self, student, teacher_features, batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        features, _ = routed_pass(student, batch["pixel_values"])
        loss = text_loss(student, features, batch)
        return loss, {"text": loss.detach()}
