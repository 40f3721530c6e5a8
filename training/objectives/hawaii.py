"""HAWAII's objective (eq. 7), its options, and the projections that only training needs."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import nn

from ...configuration.configuration_hawaii import HawaiiVisionConfig, check_choice
from ...files.user_error import UserError
from ...modeling_hawaii.vision_hawaii import HawaiiVisionModel
from ..teachers.grids import GRID_MATCHINGS, matched_shape
from .encoder_passes import Student, encoder_of, routed_and_forced_passes, routed_pass
from .hawaii_losses import (
    coarse_grained_loss,
    fine_grained_loss,
    load_balance_loss,
    similarity_scores,
    token_importance,
)
from .objective import (
    Objective,
    ObjectiveOptions,
    check_has_teachers,
    make_logged_terms,
    select_distilled,
    weigh_images,
)
from .projections import Projection, TokenMatching, module_keys
from .text_loss import text_terms


# Shapes: S squares, I squares that teachers see, N teachers, m student tokens, D student width, B samples, t prompt
# tokens, L layers, P = m and the class token, if there is one.


DISTILLATIONS = ("fine", "coarse")
SCORE_GRADIENTS = ("text", "full", "none")


@dataclass
class HawaiiOptions(ObjectiveOptions):
    """
    Options of [`HawaiiObjective`], with the paper's values as defaults.

    Args:
        lambda_2 (`float`, *optional*, defaults to 0.05):
            Weight of the load balance loss (eq. 7).
        distillation (`list[str]`, *optional*, defaults to `["fine", "coarse"]`):
            Which of the two distillation losses are used; without `fine`, the encoder runs once. A later stage may use
            fewer. With a `lambda_1` of 0 none is.
        grid_matching (`str`, *optional*, defaults to `"unshuffle"`):
            `unshuffle`, `interpolate` or `learned`, see [`match_grid`].
        token_scoring (`bool`, *optional*, defaults to `True`):
            Whether fine-grained distillation weights tokens by importance (eq. 5).
        score_gradient (`str`, *optional*, defaults to `"text"`):
            Which projections learn from the importance: the instruction's (`text`), the teachers' as well (`full`), or
            `none`.
        sequential_passes (`bool`, *optional*, defaults to `False`):
            Runs the encoder once per teacher and once routed, instead of all in one batch: the same numbers with less
            memory, in more and smaller operations.
    """

    lambda_2: float = 0.05
    distillation: list[str] = field(default_factory=lambda: list(DISTILLATIONS))
    grid_matching: str = "unshuffle"
    token_scoring: bool = True
    score_gradient: str = "text"
    sequential_passes: bool = False

    module_options: ClassVar = ("distillation", "grid_matching")

    def __post_init__(self):
        check_choice("grid_matching", self.grid_matching, GRID_MATCHINGS)
        check_choice("score_gradient", self.score_gradient, SCORE_GRADIENTS)
        for name in self.distillation:
            check_choice("distillation", name, DISTILLATIONS)
        if not self.distillation or len(set(self.distillation)) < len(self.distillation):
            raise UserError(
                f"distillation is {self.distillation!r}; it must name fine, coarse or both, each once. To train "
                "without distillation, set objective: llava."
            )


class HawaiiObjective(Objective):
    """
    `L = L_gen + lambda_1 (L_fg + L_cg) + lambda_2 L_mb` (eq. 7), over one batched pass of the student's encoder. Terms
    without inputs are left out: losses that `distillation` does not name, the balance loss of a student without
    routers, and L_gen of an encoder trained without a language model.

    The paper does not specify how teachers of different scales are made comparable; here each teacher's features are
    normalised over their channels (no parameters) before any projection.

    Args:
        options (`HawaiiOptions`), student, teacher_grids:
            As for [`Objective`]; the teachers are in the order of the adapters.

    Raises:
        UserError: there are no teachers; the student has another number of teacher-specific adapters (0 is allowed
            with coarse-grained distillation alone); or an encoder without a language model would never be trained with
            its routers active, as it is used.
    """

    options_class = HawaiiOptions
    options: HawaiiOptions

    def __init__(self, options: HawaiiOptions, student: Student, teacher_grids: dict[str, tuple[int, int, int]]):
        super().__init__(options, student, teacher_grids)
        check_has_teachers(teacher_grids, "hawaii")
        vision = encoder_of(student).config
        is_fine = "fine" in options.distillation
        self._check_adapters(vision, list(teacher_grids), is_fine)
        if isinstance(student, HawaiiVisionModel) and "coarse" not in options.distillation:
            raise UserError(
                "distillation is ['fine'], which trains each adapter alone: without a language model, nothing would "
                "train the encoder with its routers active, as it is used; add coarse to distillation."
            )
        grids, grid_size, width = teacher_grids.values(), vision.patches_a_side, vision.hidden_size
        shapes = [matched_shape(*grid, grid_size, options.grid_matching) for grid in grids]
        keys = module_keys(self.names)
        self.fine_projections = nn.ModuleDict(
            {key: Projection(channels, width) for key, (_, channels) in zip(keys, shapes) if is_fine}
        )
        self.token_projections = TokenMatching(keys, grids, grid_size, options.grid_matching)
        self.coarse_projection = None
        if "coarse" in options.distillation:
            self.coarse_projection = Projection(sum(channels for _, channels in shapes), width)
        self.text_projection = None
        if is_fine and not isinstance(student, HawaiiVisionModel):
            self.text_projection = Projection(student.config.text_config.hidden_size, width)

    def set_trainable(self, trainable: list[str]) -> None:
        super().set_trainable(trainable)
        if self.text_projection is not None:
            # It only weights the targets, so it learns in every stage; without a score gradient it cannot.
            self.text_projection.requires_grad_(self.options.token_scoring and self.options.score_gradient != "none")

    @property
    def needs_features(self) -> bool:
        return self.options.lambda_1 != 0

    @staticmethod
    def cached_matching(options: ObjectiveOptions) -> str:
        assert isinstance(options, HawaiiOptions)
        return options.grid_matching

    @staticmethod
    def vision_fields(num_teachers: int) -> dict:
        # A LLaVA has no adapters; a student that starts from one gets the default number.
        general = HawaiiVisionConfig().num_general_adapters
        return {"num_teacher_adapters": num_teachers, "num_general_adapters": general}

    def _check_adapters(self, vision: HawaiiVisionConfig, names: list[str], is_fine: bool) -> None:
        if is_fine and not vision.num_teacher_adapters:
            raise UserError(
                "The student has no teacher-specific adapters, but fine-grained distillation trains each of them "
                "alone: set distillation: [coarse], or leave out num_teacher_adapters."
            )
        if vision.num_teacher_adapters not in (0, len(names)):
            raise UserError(
                f"The student has {vision.num_teacher_adapters} teacher-specific adapters but the recipe names "
                f"{len(names)} teachers ({', '.join(names)}); each teacher needs its own adapter: name as many "
                "teachers, or start the student from another vision_tower."
            )

    def forward(
        self, student: Student, teacher_features: list[torch.Tensor], batch: dict
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """As for [`Objective`]; without a language model, `batch` has no text."""
        weight, pixel_values, forced = weigh_images(batch), batch["pixel_values"], None
        used = self.options.distillation if self.needs_features else []
        if "fine" in used:
            distilled = select_distilled(batch, pixel_values)
            passes = routed_and_forced_passes(student, pixel_values, self.options.sequential_passes, distilled)
            routed, forced, probabilities = passes  # (S, m, D), (I, N, m, D)
        else:
            routed, probabilities = routed_pass(student, pixel_values)
        matched = self._match(teacher_features) if used else []
        terms, monitored = text_terms(student, routed, batch), {"student": routed}

        if forced is not None:
            projected = self._project(matched)
            importance = self._importance(student, projected, batch)
            fine = (fine_grained_loss(forced, projected, importance) * weight[:, None]).sum(dim=0)  # (N,)
            terms["fine"] = fine.mean()
            terms |= {f"fine/{name}": value for name, value in zip(self.names, fine)}
            monitored |= {name: projected[:, index] for index, name in enumerate(self.names)}
        if "coarse" in used:
            assert self.coarse_projection is not None
            summary = self.coarse_projection(torch.cat(matched, dim=-1))  # (I, m, D), eq. 3
            terms["coarse"] = (coarse_grained_loss(select_distilled(batch, routed), summary) * weight).sum()
            monitored["coarse"] = summary
        if probabilities is not None:
            vision = encoder_of(student).config
            banks = probabilities.split([vision.num_teacher_adapters, vision.num_general_adapters], dim=-1)
            is_counted = batch["image_index"] >= 0  # of all squares
            balance = sum(load_balance_loss(bank, is_counted) for bank in banks if bank.shape[-1])  # L_mb
            terms["balance"] = balance * weight.sum()

        loss = (  # eq. 7
            terms.get("text", 0)
            + self.options.lambda_1 * (terms.get("fine", 0) + terms.get("coarse", 0))
            + self.options.lambda_2 * terms.get("balance", 0)
        )
        return loss, make_logged_terms(terms, monitored, weight)

    @torch.no_grad()
    def standardize(self, teacher_features: list[torch.Tensor]) -> None:
        """Rescales the projections so that targets start with mean 0 and variance 1 on these images."""
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
        """The two parts of the scores that weight tokens in fine-grained distillation (see [`similarity_scores`])."""
        projected = self._project(self._match(teacher_features))
        return similarity_scores(projected, *self._project_prompts(student, projected, batch))

    def _match(self, teacher_features: list[torch.Tensor]) -> list[torch.Tensor]:
        """Each teacher's features as the student's tokens, `(I, m, C)`, normalised."""
        return self.token_projections(teacher_features, next(self.parameters()).dtype)

    def _project(self, matched: list[torch.Tensor]) -> torch.Tensor:
        """Each teacher's features at the student's width, `(I, N, m, D)` (eq. 5); their channels differ."""
        projected = [projection(features) for projection, features in zip(self.fine_projections.values(), matched)]
        return torch.stack(projected, dim=1)

    def _project_prompts(
        self, student: Student, projected: torch.Tensor, batch: dict
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Each image's instruction at the student's width, `(I, t, D)`, its mask; t = 0 without a language model."""
        if self.text_projection is None or isinstance(student, HawaiiVisionModel):
            empty = projected[:, 0, :0]
            return empty, torch.ones_like(empty[..., 0], dtype=torch.bool)
        sample = select_distilled(batch, batch["image_index"]).clamp(min=0)
        words = student.get_input_embeddings()
        is_training = words.training
        words.eval()  # NEFTune's noise is for the student's input only, and fails for empty prompts
        embeddings = words(batch["prompt_ids"]).detach()  # (B, t, D_text)
        words.train(is_training)
        return self.text_projection(embeddings.to(projected.dtype))[sample], batch["prompt_mask"][sample]

    def _importance(self, student: Student, projected: torch.Tensor, batch: dict) -> torch.Tensor:
        """Weights of the teachers' tokens, `(I, N, m)`: eq. 5, or even ones without token scoring."""
        if not self.options.token_scoring:
            return torch.full_like(projected[..., 0], 1 / projected.shape[2], dtype=torch.float32)
        prompt, prompt_mask = self._project_prompts(student, projected, batch)
        keys = projected if self.options.score_gradient == "full" else projected.detach()
        return token_importance(keys, prompt, prompt_mask)
