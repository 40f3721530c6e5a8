"""An objective after AM-RADIO: the student's own tokens tell, through a head for each teacher, what that one sees."""

import torch
from torch import nn

from ..objectives.encoder_passes import Student, encoder_of, routed_pass
from ..objectives.objective import Objective, check_has_teachers, finish_terms, weigh_images
from ..objectives.projections import Projection, make_token_projections, match_teachers, module_keys
from ..objectives.text_loss import text_terms
from ..teachers.grids import matched_shape
from .radio_losses import radio_loss


class RadioObjective(Objective):
    """
    `L = L_gen + lambda_1 mean_t L_t`, with `L_t` of [`radio_loss`], and without L_gen where an encoder learns without
    a language model. The student has no adapters, unless it starts from an encoder that has some.

    The targets are the teachers' features as they are, on the student's grid and normalised over their channels. The
    heads stand on the student's side, where nothing can be made easy by them: they learn whatever `trainable` says.

    Args:
        args (`HawaiiTrainingArguments`):
            `trainable`, for the layers of `grid_matching: learned`; `lambda_1`, `grid_matching`.
        student (`HawaiiForConditionalGeneration` or `HawaiiVisionModel`):
            Gives the sizes; it is not kept.
        teacher_grids (`dict[str, tuple[int, int, int]]`):
            Height, width and channels of each teacher's features, by name.

    Raises:
        ValueError: there are no teachers.
    """

    has_adapters = False
    note = "The projections are the student's heads for its teachers: they always learn, and vanish with the teachers."

    def __init__(self, args, student: Student, teacher_grids: dict[str, tuple[int, int, int]]):
        super().__init__()
        check_has_teachers(teacher_grids, "radio")
        vision = encoder_of(student).config
        self.args = args
        self.names = list(teacher_grids)
        self.grid_size = vision.image_size // vision.patch_size
        shapes = [matched_shape(*grid, self.grid_size, args.grid_matching) for grid in teacher_grids.values()]
        keys = module_keys(self.names)
        self.heads = nn.ModuleDict(
            {key: Projection(vision.hidden_size, channels) for key, (_, channels) in zip(keys, shapes)}
        )
        self.token_projections = nn.ModuleDict()
        if args.grid_matching == "learned":
            # These stand on the targets' side.
            self.token_projections.update(make_token_projections(keys, teacher_grids.values(), vision.num_patches))
            self.token_projections.requires_grad_("projections" in args.trainable)

    @staticmethod
    def projections_learn(trainable: list[str]) -> bool:
        return True

    def forward(
        self, student, teacher_features: list[torch.Tensor], batch: dict
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """As for [`Objective`]; of an encoder alone, `batch` has no text."""
        _, weight = weigh_images(batch)
        routed, _ = routed_pass(student, batch["pixel_values"])
        terms = text_terms(student, routed, batch)
        matched = self._match(teacher_features)
        tokens = routed.to(matched[0].dtype)  # the heads' own
        # One head for each teacher, because their channels differ.
        losses = [
            (radio_loss(head(tokens), features) * weight).sum() for head, features in zip(self.heads.values(), matched)
        ]
        distillation = torch.stack(losses).mean()
        terms["distillation"] = distillation
        loss = terms.get("text", 0) + self.args.lambda_1 * distillation

        terms |= {f"distillation/{name}": value for name, value in zip(self.names, losses)}
        followed = {"student": routed}
        if self.token_projections:  # no target moves but those that a layer matches
            followed |= dict(zip(self.names, matched))
        return loss, finish_terms(terms, followed, weight)

    def _match(self, teacher_features: list[torch.Tensor]) -> list[torch.Tensor]:
        dtype = next(self.heads.parameters()).dtype
        tokens = self.token_projections.values()
        return match_teachers(teacher_features, self.grid_size, self.args.grid_matching, tokens, dtype)
