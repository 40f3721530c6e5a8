"""HAWAII's objective (eq. 7) and the projections that only training needs."""

import torch
from torch import nn

from ...configuration.configuration_hawaii import HawaiiVisionConfig
from ...files.user_error import UserError
from ...modeling_hawaii.vision_hawaii import HawaiiVisionModel
from ..teachers.grids import matched_shape
from .encoder_passes import Student, encoder_of, routed_and_forced_passes, routed_pass
from .hawaii_losses import (
    coarse_grained_loss,
    fine_grained_loss,
    load_balance_loss,
    similarity_scores,
    token_importance,
)
from .objective import Objective, check_has_teachers, finish_terms, weigh_images
from .projections import Projection, make_token_projections, match_teachers, module_keys
from .text_loss import text_terms


# Shapes: I images, N teachers, m student tokens, D student width, B samples, t prompt tokens, L layers, P = m and the
# class token, if there is one.


class HawaiiObjective(Objective):
    """
    `L = L_gen + lambda_1 (L_fg + L_cg) + lambda_2 L_mb` (eq. 7), over one batched pass of the student's encoder. Terms
    that there is nothing to make of are left out: those that `distillation` does not name, the balance of routers that
    do not exist, and L_gen of an encoder that learns without a language model.

    The paper does not say how teachers of different scales are made comparable; here each one's features are
    normalised over their channels (no parameters), before any projection.

    Args:
        args (`HawaiiTrainingArguments`):
            `trainable`, `lambda_1`, `lambda_2`, `distillation`, `grid_matching`, `token_scoring`, `score_gradient`,
            `sequential_passes`.
        student (`HawaiiForConditionalGeneration` or `HawaiiVisionModel`):
            Gives the sizes; it is not kept.
        teacher_grids (`dict[str, tuple[int, int, int]]`):
            Height, width and channels of each teacher's features, by name, in the order of the adapters.

    Raises:
        ValueError: there are no teachers; the student has another number of teacher-specific adapters (none is allowed
            where coarse-grained distillation is all); or an encoder that learns alone would not be taught with its
            routers at work, which is how it is used.
    """

    own_lambda_2 = 0.05

    def __init__(self, args, student: Student, teacher_grids: dict[str, tuple[int, int, int]]):
        super().__init__()
        check_has_teachers(teacher_grids, "hawaii")
        vision = encoder_of(student).config
        self.is_fine = "fine" in args.distillation
        self._check_adapters(vision, list(teacher_grids))
        if isinstance(student, HawaiiVisionModel) and "coarse" not in args.distillation:
            raise UserError(
                "distillation is ['fine'], which teaches each adapter alone: without a language model, nothing would "
                "teach the encoder with its routers at work, as it is used; let distillation name coarse."
            )
        self.args = args
        self.names = list(teacher_grids)
        self.grid_size = vision.image_size // vision.patch_size
        width = vision.hidden_size
        shapes = [matched_shape(*grid, self.grid_size, args.grid_matching) for grid in teacher_grids.values()]
        keys = module_keys(self.names)
        self.fine_projections = nn.ModuleDict()
        if self.is_fine:
            self.fine_projections.update(
                {key: Projection(channels, width) for key, (_, channels) in zip(keys, shapes)}
            )
        self.token_projections = nn.ModuleDict()
        if args.grid_matching == "learned":
            self.token_projections.update(make_token_projections(keys, teacher_grids.values(), vision.num_patches))
        self.coarse_projection = None
        if "coarse" in args.distillation:
            self.coarse_projection = Projection(sum(channels for _, channels in shapes), width)
        self.requires_grad_("projections" in args.trainable)
        # The instruction's, which only weighs the targets: where the score has no gradient, nothing could teach it.
        self.text_projection = None
        if self.is_fine and not isinstance(student, HawaiiVisionModel):
            self.text_projection = Projection(student.config.text_config.hidden_size, width).requires_grad_(
                args.token_scoring and args.score_gradient != "none"
            )

    @staticmethod
    def vision_fields(num_teachers: int) -> dict:
        # A LLaVA has no adapters, but what starts from one has the usual number.
        general = HawaiiVisionConfig().num_general_adapters
        return {"num_teacher_adapters": num_teachers, "num_general_adapters": general}

    def _check_adapters(self, vision: HawaiiVisionConfig, names: list[str]) -> None:
        if self.is_fine and not vision.num_teacher_adapters:
            raise UserError(
                "The student has no teacher-specific adapters, and fine-grained distillation teaches each of them "
                "alone: say distillation: [coarse], or leave out num_teacher_adapters."
            )
        if vision.num_teacher_adapters not in (0, len(names)):
            raise UserError(
                f"The student has {vision.num_teacher_adapters} teacher-specific adapters but the recipe names "
                f"{len(names)} teachers ({', '.join(names)}); each teacher needs its own adapter: name as many "
                "teachers, or let the student start from another vision_tower."
            )

    def forward(
        self, student: Student, teacher_features: list[torch.Tensor], batch: dict
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """As for [`Objective`]; of an encoder alone, `batch` has no text."""
        is_counted, weight = weigh_images(batch)
        routed, forced, probabilities = self._encode(student, batch["pixel_values"])
        matched = self._match(teacher_features)
        terms, followed = text_terms(student, routed, batch), {"student": routed}

        if forced is not None:
            projected = self._project(matched)
            importance = self._importance(student, projected, batch)
            fine = (fine_grained_loss(forced, projected, importance) * weight[:, None]).sum(dim=0)  # (N,)
            terms["fine"] = fine.mean()
            terms |= {f"fine/{name}": value for name, value in zip(self.names, fine)}
            followed |= {name: projected[:, index] for index, name in enumerate(self.names)}
        if self.coarse_projection is not None:
            summary = self.coarse_projection(torch.cat(matched, dim=-1))  # (I, m, D), eq. 3
            terms["coarse"] = (coarse_grained_loss(routed, summary) * weight).sum()
            followed["coarse"] = summary
        if probabilities is not None:
            terms["balance"] = self._balance(encoder_of(student).config, probabilities, is_counted) * weight.sum()

        loss = (  # eq. 7
            terms.get("text", 0)
            + self.args.lambda_1 * (terms.get("fine", 0) + terms.get("coarse", 0))
            + self.args.lambda_2 * terms.get("balance", 0)
        )
        return loss, finish_terms(terms, followed, weight)

    @torch.no_grad()
    def standardize(self, teacher_features: list[torch.Tensor]) -> None:
        """Lets every target begin with mean zero and variance one; `teacher_features` are those of some images."""
        matched = self._match(teacher_features)
        for projection, features in zip(self.fine_projections.values(), matched):
            assert isinstance(projection, Projection)
            projection.standardize(features)
        if self.coarse_projection is not None:
            self.coarse_projection.standardize(torch.cat(matched, dim=-1))

    @torch.no_grad()
    def similarity_scores(
        self, student: Student, teacher_features: list[torch.Tensor], batch: dict
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The two parts of the scores by which fine-grained distillation weighs tokens (see [`similarity_scores`])."""
        projected = self._project(self._match(teacher_features))
        return similarity_scores(projected, *self._project_prompts(student, projected, batch))

    def _encode(self, student: Student, pixel_values: torch.Tensor):
        """The routed features `(I, m, D)`, the forced `(I, N, m, D)` if any, the routers' probabilities."""
        if self.is_fine:
            return routed_and_forced_passes(student, pixel_values, self.args.sequential_passes)
        routed, probabilities = routed_pass(student, pixel_values)
        return routed, None, probabilities

    def _match(self, teacher_features: list[torch.Tensor]) -> list[torch.Tensor]:
        """Each teacher's features as the student's tokens, `(I, m, C)`, normalised."""
        dtype = next(self.parameters()).dtype
        tokens = self.token_projections.values()
        return match_teachers(teacher_features, self.grid_size, self.args.grid_matching, tokens, dtype)

    def _project(self, matched: list[torch.Tensor]) -> torch.Tensor:
        """Each teacher at the student's width, `(I, N, m, D)` (eq. 5); one by one, because their channels differ."""
        projected = [projection(features) for projection, features in zip(self.fine_projections.values(), matched)]
        return torch.stack(projected, dim=1)

    def _project_prompts(
        self, student: Student, projected: torch.Tensor, batch: dict
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Each image's instruction at the student's width, `(I, t, D)`, and its mask; t = 0 where nobody asks."""
        if self.text_projection is None or isinstance(student, HawaiiVisionModel):
            nothing = projected[:, 0, :0]
            return nothing, torch.ones_like(nothing[..., 0], dtype=torch.bool)
        sample = batch["image_index"].clamp(min=0)
        embeddings = student.get_input_embeddings()(batch["prompt_ids"]).detach()  # (B, t, D_text)
        return self.text_projection(embeddings.to(projected.dtype))[sample], batch["prompt_mask"][sample]

    def _importance(self, student: Student, projected: torch.Tensor, batch: dict) -> torch.Tensor:
        """Weights of the teachers' tokens, `(I, N, m)`: eq. 5, or even ones without token scoring."""
        if not self.args.token_scoring:
            return torch.full_like(projected[..., 0], 1 / projected.shape[2], dtype=torch.float32)
        prompt, prompt_mask = self._project_prompts(student, projected, batch)
        keys = projected if self.args.score_gradient == "full" else projected.detach()
        return token_importance(keys, prompt, prompt_mask)

    @staticmethod
    def _balance(
        vision: HawaiiVisionConfig, probabilities: torch.Tensor, is_counted: torch.Tensor
    ) -> torch.Tensor | int:
        """L_mb: mean over layers, sum of the banks that there are."""
        banks = probabilities.split([vision.num_teacher_adapters, vision.num_general_adapters], dim=-1)
        return sum(load_balance_loss(bank, is_counted) for bank in banks if bank.shape[-1])
