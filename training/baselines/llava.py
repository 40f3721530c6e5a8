"""LLaVA's objective: the answers alone. No teachers, no adapters."""

import torch

from ...files.user_error import UserError
from ...modeling_hawaii.vision_hawaii import HawaiiVisionModel
from ..objectives.encoder_passes import routed_pass
from ..objectives.objective import Objective
from ..objectives.text_loss import text_loss


class LlavaObjective(Objective):
    """
    `L = L_gen` (eq. 1): the baseline, with nothing that training alone needs. The student has no adapters, unless it
    starts from an encoder that has some.

    Raises:
        ValueError: the student is an encoder without a language model.
    """

    uses_teachers = False
    has_adapters = False
    note = "The objective has no projections and no teachers."

    def __init__(self, args, student, teacher_grids):
        super().__init__()
        if isinstance(student, HawaiiVisionModel):
            raise UserError(
                "The objective llava learns answers alone, and the recipe names no language model to give any: name a "
                "language_model or a text_config, or another objective."
            )

    @staticmethod
    def projections_learn(trainable: list[str]) -> bool:
        return False

    def forward(self, student, teacher_features, batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        features, _ = routed_pass(student, batch["pixel_values"])
        loss = text_loss(student, features, batch)
        return loss, {"text": loss.detach()}
