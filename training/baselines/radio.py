"""An objective after AM-RADIO: a head per teacher predicts the teacher's features from the student's tokens."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from ...configuration.configuration_hawaii import check_choice
from ..objectives.encoder_passes import Student, encoder_of, routed_pass
from ..objectives.objective import (
    Objective,
    ObjectiveOptions,
    check_has_teachers,
    make_logged_terms,
    select_distilled,
    weigh_images,
)
from ..objectives.projections import Projection, TokenMatching, module_keys
from ..objectives.text_loss import text_terms
from ..teachers.grids import GRID_MATCHINGS, matched_shape
from .radio_losses import radio_loss


@dataclass
class RadioOptions(ObjectiveOptions):
    """
    Options of [`RadioObjective`].

    Args:
        grid_matching (`str`, *optional*, defaults to `"unshuffle"`):
            `unshuffle`, `interpolate` or `learned`, see [`match_grid`].
    """

    grid_matching: str = "unshuffle"

    module_options: ClassVar = ("grid_matching",)

    def __post_init__(self):
        check_choice("grid_matching", self.grid_matching, GRID_MATCHINGS)


class RadioObjective(Objective):
    """
    `L = L_gen + lambda_1 mean_t L_t`, with `L_t` of [`radio_loss`], and without L_gen if an encoder is trained without
    a language model. The student has no adapters, unless it starts from an encoder with adapters.

    The targets are the teachers' features on the student's grid, normalised over their channels. The heads transform
    the student's features and cannot make the targets easier, so they always learn, regardless of `trainable`.

    Args:
        options (`RadioOptions`), student, teacher_grids:
            As for [`Objective`].

    Raises:
        UserError: there are no teachers.
    """

    options_class = RadioOptions
    options: RadioOptions
    has_adapters = False
    note = "The projections are the heads that predict the teachers: they always learn, and are never saved."

    def __init__(self, options: RadioOptions, student: Student, teacher_grids: dict[str, tuple[int, int, int]]):
        super().__init__(options, student, teacher_grids)
        check_has_teachers(teacher_grids, "radio")
        vision = encoder_of(student).config
        grids, grid_size = teacher_grids.values(), vision.patches_a_side
        shapes = [matched_shape(*grid, grid_size, options.grid_matching) for grid in grids]
        keys = module_keys(self.names)
        self.heads = nn.ModuleDict(
            {key: Projection(vision.hidden_size, channels) for key, (_, channels) in zip(keys, shapes)}
        )
        self.token_projections = TokenMatching(keys, grids, grid_size, options.grid_matching)

    def set_trainable(self, trainable: list[str]) -> None:
        # The heads always learn; only these layers transform the targets.
        self.token_projections.requires_grad_("projections" in trainable)

    @staticmethod
    def cached_matching(options: ObjectiveOptions) -> str:
        assert isinstance(options, RadioOptions)
        return options.grid_matching

    @staticmethod
    def projections_learn(trainable: list[str]) -> bool:
        return True

    def forward(
        self, student, teacher_features: list[torch.Tensor], batch: dict
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """As for [`Objective`]; without a language model, `batch` has no text."""
        weight = weigh_images(batch)
        routed, _ = routed_pass(student, batch["pixel_values"])
        terms = text_terms(student, routed, batch)
        matched = self.token_projections(teacher_features, next(self.heads.parameters()).dtype)
        tokens = select_distilled(batch, routed).to(matched[0].dtype)  # the dtype of the heads
        # One head for each teacher, because their channels differ.
        losses = [
            (radio_loss(head(tokens), features) * weight).sum() for head, features in zip(self.heads.values(), matched)
        ]
        distillation = torch.stack(losses).mean()
        terms["distillation"] = distillation
        loss = terms.get("text", 0) + self.options.lambda_1 * distillation

        terms |= {f"distillation/{name}": value for name, value in zip(self.names, losses)}
        monitored = {"student": routed}
        if self.token_projections:  # only targets that a layer transforms can collapse
            monitored |= dict(zip(self.names, matched))
        return loss, make_logged_terms(terms, monitored, weight)
