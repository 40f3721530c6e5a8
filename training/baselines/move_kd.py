"""MoVE-KD's objective, a baseline for HAWAII, and its encoder adapters, which are used in training only."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ...files.user_error import UserError
from ..objectives.encoder_passes import Student, encoder_of, routed_pass
from ..objectives.objective import (
    Objective,
    ObjectiveOptions,
    check_has_teachers,
    make_logged_terms,
    select_distilled,
    weigh_images,
)
from ..objectives.projections import keep_places, module_keys, standardize_layer
from ..objectives.text_loss import text_terms
from ..teachers.grids import resize_grid
from ..teachers.teacher import Teacher
from .class_token_teacher import ClassTokenFeatures, ClassTokenGrid, ClassTokenTeacher
from .move_kd_losses import (
    move_kd_loss,
    pooled_balance_loss,
    renormalized_attention,
    softmax_of_attention,
    weigh_teachers,
)


# Shapes: I images, N teachers, h x w grid of a teacher, C its channels, m student tokens, D student width.


class EncoderAdapter(nn.Module):
    """Maps a teacher to the student's width and tokens: a layer over channels, a GELU, a layer over tokens."""

    def __init__(self, height: int, width: int, channels: int, num_tokens: int, hidden_size: int):
        super().__init__()
        self.channel_layer = nn.Linear(channels, hidden_size)
        self.token_layer = nn.Linear(height * width, num_tokens)

    def widen(self, tokens: torch.Tensor) -> torch.Tensor:
        """Maps `(..., channels)` to `(..., hidden_size)`, in the precision of the layer."""
        return F.gelu(self.channel_layer(tokens.to(self.channel_layer.weight.dtype)))

    def forward(self, grid: torch.Tensor) -> torch.Tensor:
        """Maps `(num_images, height, width, channels)` to `(num_images, num_tokens, hidden_size)`."""
        return self.token_layer(self.widen(grid.flatten(1, 2)).transpose(1, 2)).transpose(1, 2)

    @torch.no_grad()
    def standardize(self, grid: torch.Tensor) -> None:
        """
        Rescales the layers so that targets start with mean 0 and variance 1, as for the other objectives (see
        [`Projection`]), and keep their places (see [`keep_places`]). MoVE-KD does neither.
        """
        height, width = grid.shape[1:3]
        tokens = grid.flatten(1, 2).to(self.channel_layer.weight.dtype)
        standardize_layer(self.channel_layer, self.channel_layer(tokens))
        keep_places(self.token_layer, height, width)
        std, mean = torch.std_mean(self(grid), correction=0)
        std = std.clamp(min=1e-5)
        self.token_layer.weight.div_(std)
        self.token_layer.bias.sub_(mean).div_(std)


@dataclass
class MoveKdOptions(ObjectiveOptions):
    """
    Options of [`MoveKdObjective`].

    Args:
        lambda_2 (`float`, *optional*, defaults to 0.01):
            Weight of the load balance loss.
        single_softmax (`bool`, *optional*, defaults to `False`):
            Weights tokens by the anchor's attention itself, not by a softmax of it.
        detached_teacher_weights (`bool`, *optional*, defaults to `False`):
            Stops the gradient through the teachers' weights.
    """

    lambda_2: float = 0.01
    single_softmax: bool = False
    detached_teacher_weights: bool = False


class MoveKdObjective(Objective):
    """
    `L = L_text + lambda_1 sum_t W_t L_t + lambda_2 L_bal`, faithful to MoVE-KD unless `single_softmax` or
    `detached_teacher_weights` repairs a flaw; see move_kd_losses.py. Without a language model there is no L_text.

    The anchor, CLIP in MoVE-KD, is the first teacher with a class token whose attention is available: both weight the
    teachers and the tokens. It has no adapter if its grid and width are the student's. MoVE-KD defines no other case;
    here an anchor of another shape gets an adapter like the others, its class token passes through the channel layer
    and the GELU, and its attention is resampled to the student's grid with the same sum.

    Features are not normalised, and the adapters map each teacher's cells to the student's, so there is no
    `grid_matching`.

    Args:
        options (`MoveKdOptions`), student, teacher_grids:
            As for [`Objective`]; the grid of the anchor is a [`ClassTokenGrid`].

    Raises:
        UserError: there are no teachers, no anchor is among them, or the student has two banks of adapters.
    """

    options_class = MoveKdOptions
    options: MoveKdOptions

    def __init__(self, options: MoveKdOptions, student: Student, teacher_grids: dict[str, tuple[int, int, int]]):
        super().__init__(options, student, teacher_grids)
        check_has_teachers(teacher_grids, "move_kd")
        anchors = [index for index, grid in enumerate(teacher_grids.values()) if isinstance(grid, ClassTokenGrid)]
        if not anchors:
            raise UserError(
                f"None of the teachers ({', '.join(teacher_grids)}) is a vision transformer with a class token that "
                "transformers loads, which the objective move_kd needs to weight teachers and tokens: add one, such "
                "as clip."
            )
        vision = encoder_of(student).config
        if vision.num_teacher_adapters:
            raise UserError(
                f"The student has {vision.num_teacher_adapters} teacher-specific adapters, and the objective move_kd "
                "uses general adapters only: start from another vision_tower."
            )
        self.anchor = anchors[0]
        self.grid_size = vision.patches_a_side
        student_grid = (self.grid_size, self.grid_size, vision.hidden_size)
        self.keys = module_keys(self.names)
        self.adapters = nn.ModuleDict(
            {
                key: EncoderAdapter(*grid, vision.num_patches, vision.hidden_size)
                for index, (key, grid) in enumerate(zip(self.keys, teacher_grids.values()))
                if index != self.anchor or tuple(grid) != student_grid
            }
        )

    @staticmethod
    def vision_fields(num_teachers: int) -> dict:
        return {
            "num_teacher_adapters": 0,
            "num_general_adapters": 3,
            "adapter_placement": "linear",
            "lora_rank": 32,
            "lora_alpha": 1,
            "lora_bias": True,
            "router_hidden_size": None,
            "router_gradient": "none",
        }

    @staticmethod
    def prepare_teachers(teachers) -> list[Teacher | ClassTokenTeacher]:
        """Makes the first teacher that has a class token return it."""
        for index, teacher in enumerate(teachers):
            if teacher.class_token_attention() is not None:
                return [*teachers[:index], ClassTokenTeacher(teacher), *teachers[index + 1 :]]
        return list(teachers)

    def forward(
        self, student, teacher_features: list[torch.Tensor | ClassTokenFeatures], batch: dict
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """As for [`Objective`]; the anchor's features are [`ClassTokenFeatures`]."""
        weight = weigh_images(batch)
        routed, probabilities = routed_pass(student, batch["pixel_values"])
        anchor = teacher_features[self.anchor]
        assert isinstance(anchor, ClassTokenFeatures)
        projected = self._project(teacher_features)
        key, class_token = self.keys[self.anchor], anchor.class_token
        class_token = self._adapter(key).widen(class_token) if key in self.adapters else class_token  # (I, D)
        shares = weigh_teachers(class_token, projected, self.anchor)
        shares = shares.detach() if self.options.detached_teacher_weights else shares  # (I, N)
        losses = move_kd_loss(select_distilled(batch, routed), projected, self._weigh_tokens(anchor))  # (I, N)

        terms = text_terms(student, routed, batch)
        terms["distillation"] = ((shares * losses).sum(dim=1) * weight).sum()
        loss = terms.get("text", 0) + self.options.lambda_1 * terms["distillation"]
        if probabilities is not None:
            terms["balance"] = (select_distilled(batch, pooled_balance_loss(probabilities)) * weight).sum()
            loss = loss + self.options.lambda_2 * terms["balance"]

        monitored = {"student": routed, **{name: projected[:, index] for index, name in enumerate(self.names)}}
        for index, name in enumerate(self.names):
            terms[f"distillation/{name}"] = (losses[:, index] * weight).sum()
            terms[f"weight/{name}"] = (shares[:, index] * weight).sum()
        return loss, make_logged_terms(terms, monitored, weight)

    @torch.no_grad()
    def standardize(self, teacher_features: list[torch.Tensor | ClassTokenFeatures]) -> None:
        """Rescales the adapters so that targets start with mean 0 and variance 1 and keep their places."""
        for key, grid in zip(self.keys, self._grids(teacher_features)):
            if key in self.adapters:
                self._adapter(key).standardize(grid)

    @staticmethod
    def _grids(teacher_features: list[torch.Tensor | ClassTokenFeatures]) -> list[torch.Tensor]:
        return [item.grid if isinstance(item, ClassTokenFeatures) else item for item in teacher_features]

    def _adapter(self, key: str) -> EncoderAdapter:
        adapter = self.adapters[key]
        assert isinstance(adapter, EncoderAdapter)
        return adapter

    def _project(self, teacher_features: list[torch.Tensor | ClassTokenFeatures]) -> torch.Tensor:
        """Maps each teacher to the student's width, `(I, N, m, D)`, in float32; a loop, since shapes differ."""
        projected = [
            self._adapter(key)(grid) if key in self.adapters else grid.flatten(1, 2)
            for key, grid in zip(self.keys, self._grids(teacher_features))
        ]
        return torch.stack([tokens.float() for tokens in projected], dim=1)

    def _weigh_tokens(self, anchor: ClassTokenFeatures) -> torch.Tensor:
        """Returns the weights of the student's tokens, `(I, m)`."""
        attention = anchor.class_attention.float()
        if anchor.grid.shape[1:3] != (self.grid_size, self.grid_size):
            cells = attention.unflatten(1, anchor.grid.shape[1:3]).unsqueeze(-1)  # (I, h, w, 1)
            resampled = resize_grid(cells, self.grid_size).flatten(1)
            attention = resampled * (attention.sum(dim=1) / resampled.sum(dim=1))[:, None]
        return renormalized_attention(attention) if self.options.single_softmax else softmax_of_attention(attention)
