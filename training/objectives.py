"""What is learned: HAWAII's objective (eq. 7) and the projections that only training needs."""

import torch
import torch.nn.functional as F
from torch import nn

from ..modeling_hawaii.modeling_hawaii import HawaiiForConditionalGeneration
from .grids import match_grid, matched_shape
from .losses import coarse_grained_loss, fine_grained_loss, load_balance_loss, token_importance


# Shapes: I images, N teachers, m student tokens, D student width, B samples, t prompt tokens, L layers, P = m and the
# class token, if there is one.


class Projection(nn.Sequential):
    """Two linear layers with a GELU between, on the last dimension: to the student's width."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__(nn.Linear(in_features, out_features), nn.GELU(), nn.Linear(out_features, out_features))

    @torch.no_grad()
    def standardize(self, features: torch.Tensor) -> None:
        """
        Changes the last layer so that each channel that comes of `features` has mean zero and variance one.

        A fresh projection gives targets that hardly vary around a large mean. A student meets those by hardly varying
        itself, which teaches nothing and leaves little for the language model to see.

        Args:
            features (`torch.FloatTensor` of shape `(..., in_features)`):
                Some of what will be projected.
        """
        std, mean = torch.std_mean(self(features).flatten(0, -2), dim=0, correction=0)
        std = std.clamp(min=1e-5)  # a channel that never varies has nothing but rounding to be made large
        last = self[-1]
        assert isinstance(last, nn.Linear)
        last.weight.div_(std[:, None])
        last.bias.sub_(mean).div_(std)


class HawaiiObjective(nn.Module):
    """
    `L = L_gen + lambda_1 (L_fg + L_cg) + lambda_2 L_mb` (eq. 7), over one batched pass of the student's encoder.

    The paper does not say how teachers of different scales are made comparable; here each one's features are
    normalised over their channels (no parameters), before any projection.

    Args:
        args (`HawaiiTrainingArguments`):
            `trainable`, `lambda_1`, `lambda_2`, `grid_matching`, `token_scoring`, `score_gradient`,
            `sequential_passes`.
        student (`HawaiiForConditionalGeneration`):
            Gives the sizes; it is not kept.
        teacher_grids (`dict[str, tuple[int, int, int]]`):
            Height, width and channels of each teacher's features, by name, in the order of the adapters.

    Raises:
        ValueError: there are no teachers, or the student has another number of teacher-specific adapters.
    """

    def __init__(self, args, student: HawaiiForConditionalGeneration, teacher_grids: dict[str, tuple[int, int, int]]):
        super().__init__()
        vision, text = student.config.vision_config, student.config.text_config
        if not teacher_grids:
            raise ValueError("The recipe names no teachers, and the objective hawaii has nothing else to distill.")
        if vision.num_teacher_adapters != len(teacher_grids):
            raise ValueError(
                f"The student has {vision.num_teacher_adapters} teacher-specific adapters but the recipe names "
                f"{len(teacher_grids)} teachers ({', '.join(teacher_grids)}); each teacher needs its own adapter."
            )
        self.args = args
        self.names = list(teacher_grids)
        self.grid_size = vision.image_size // vision.patch_size
        width = vision.hidden_size
        shapes = [matched_shape(*grid, self.grid_size, args.grid_matching) for grid in teacher_grids.values()]
        # By place and name, so that the weights of other teachers, or of the same in another order, are not taken for
        # these: adapter i is teacher i's. A module's name has no dot.
        keys = [f"{index}_{name.replace('.', '-')}" for index, name in enumerate(self.names)]
        self.fine_projections = nn.ModuleDict(
            {key: Projection(channels, width) for key, (_, channels) in zip(keys, shapes)}
        )
        self.token_projections = nn.ModuleDict()
        if args.grid_matching == "learned":
            for key, (num_tokens, _) in zip(keys, shapes):
                self.token_projections[key] = nn.Linear(num_tokens, vision.num_patches)
        self.coarse_projection = Projection(sum(channels for _, channels in shapes), width)
        # All but the instruction's, which only weighs the targets.
        for projections in (self.token_projections, self.fine_projections, self.coarse_projection):
            projections.requires_grad_("projections" in args.trainable)
        # Where the score has no gradient, nothing could teach this projection.
        self.text_projection = Projection(text.hidden_size, width).requires_grad_(
            args.token_scoring and args.score_gradient != "none"
        )

    def forward(
        self, student: HawaiiForConditionalGeneration, teacher_features: list[torch.Tensor], batch: dict
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """
        Args:
            student (`HawaiiForConditionalGeneration`):
                The model that learns.
            teacher_features (`list[torch.FloatTensor]`):
                Of each teacher, `(num_images, height, width, channels)`.
            batch (`dict`):
                What the collator makes, with `num_label_tokens` and `num_images`: the counts over all micro-batches
                and processes of the step, which make accumulation equal to one large batch.

        Returns:
            The loss and its terms, each a share of the step's value: over the micro-batches and processes they sum up.
        """
        is_counted = batch["image_index"] >= 0
        weight = is_counted.float() / batch["num_images"].clamp(min=1)  # (I,)
        routed, forced, probabilities = self._encode(student, batch["pixel_values"])

        projected, summary = self._project(teacher_features)
        importance = self._importance(student, projected, batch)
        fine = (fine_grained_loss(forced, projected, importance) * weight[:, None]).sum(dim=0)  # (N,)
        coarse = (coarse_grained_loss(routed, summary) * weight).sum()
        balance = self._balance(student, probabilities, is_counted) * weight.sum()
        text = self._text_loss(student, routed, batch)

        loss = text + self.args.lambda_1 * (fine.mean() + coarse) + self.args.lambda_2 * balance  # eq. 7
        terms = {"text": text, "fine": fine.mean(), "coarse": coarse, "balance": balance}
        terms |= {f"fine/{name}": value for name, value in zip(self.names, fine)}
        terms |= {name: value * weight.sum() for name, value in self._variances(routed, projected, summary).items()}
        return loss, {name: value.detach() for name, value in terms.items()}

    @torch.no_grad()
    def standardize(self, teacher_features: list[torch.Tensor]) -> None:
        """Lets every target begin with mean zero and variance one; `teacher_features` are those of some images."""
        matched = self._match(teacher_features)
        for projection, features in zip(self.fine_projections.values(), matched):
            assert isinstance(projection, Projection)
            projection.standardize(features)
        self.coarse_projection.standardize(torch.cat(matched, dim=-1))

    def _encode(self, student, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The routed features `(I, m, D)`, the forced `(I, N, m, D)`, the routers' probabilities `(L, I, P, A)`."""
        num_images, num_passes = pixel_values.shape[0], 1 + len(self.names)
        tower = student.model.vision_tower
        adapters = torch.arange(-1, num_passes - 1, device=pixel_values.device).repeat_interleave(num_images)
        if self.args.sequential_passes:
            outputs = [
                tower(pixel_values, adapters=chosen, output_routing=True) for chosen in adapters.split(num_images)
            ]
            passes = torch.stack([output.last_hidden_state for output in outputs])
            probabilities = outputs[0].router_probabilities
        else:
            output = tower(pixel_values.repeat(num_passes, 1, 1, 1), adapters=adapters, output_routing=True)
            passes = output.last_hidden_state.unflatten(0, (num_passes, num_images))
            probabilities = output.router_probabilities[:, :num_images]
        passes = passes[:, :, student.config.vision_config.num_prefix_tokens :]  # (1 + N, I, m, D), patches alone
        return passes[0], passes[1:].transpose(0, 1), probabilities

    def _match(self, teacher_features: list[torch.Tensor]) -> list[torch.Tensor]:
        """
        Each teacher's features as the student's tokens, `(I, m, C)`, normalised: experts differ in scale by a factor
        of ten, and the summary would hear the loudest alone.
        """
        dtype = next(self.coarse_projection.parameters()).dtype
        matched = [match_grid(grid, self.grid_size, self.args.grid_matching).to(dtype) for grid in teacher_features]
        for index, projection in enumerate(self.token_projections.values()):
            matched[index] = projection(matched[index].transpose(1, 2)).transpose(1, 2)
        return [F.layer_norm(features, features.shape[-1:]) for features in matched]

    def _project(self, teacher_features: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Each teacher at the student's width `(I, N, m, D)` (eq. 5), and the summary of all `(I, m, D)` (eq. 3)."""
        matched = self._match(teacher_features)
        # One projection for each teacher, because their channels differ.
        projected = [projection(features) for projection, features in zip(self.fine_projections.values(), matched)]
        return torch.stack(projected, dim=1), self.coarse_projection(torch.cat(matched, dim=-1))

    def _importance(self, student, projected: torch.Tensor, batch: dict) -> torch.Tensor:
        """Weights of the teachers' tokens, `(I, N, m)`: eq. 5, or even ones without token scoring."""
        if not self.args.token_scoring:
            return torch.full_like(projected[..., 0], 1 / projected.shape[2], dtype=torch.float32)
        sample = batch["image_index"].clamp(min=0)
        embeddings = student.get_input_embeddings()(batch["prompt_ids"]).detach()  # (B, t, D_text)
        prompt = self.text_projection(embeddings.to(projected.dtype))[sample]  # (I, t, D)
        keys = projected if self.args.score_gradient == "full" else projected.detach()
        return token_importance(keys, prompt, batch["prompt_mask"][sample])

    def _balance(self, student, probabilities: torch.Tensor, is_counted: torch.Tensor) -> torch.Tensor:
        """L_mb: mean over layers, sum of the two banks."""
        vision = student.config.vision_config
        banks = probabilities.split([vision.num_teacher_adapters, vision.num_general_adapters], dim=-1)
        return sum(load_balance_loss(bank, is_counted) for bank in banks if bank.shape[-1])

    def _text_loss(self, student, routed: torch.Tensor, batch: dict) -> torch.Tensor:
        """L_gen (eq. 1): cross-entropy of the answers, a mean over the label tokens of the whole step."""
        image_features = student.model.multi_modal_projector(routed)
        inputs_embeds = student.model.merge_image_features(batch["input_ids"], image_features)
        return student(
            inputs_embeds=inputs_embeds,
            attention_mask=batch["attention_mask"],
            labels=batch["labels"],
            num_items_in_batch=batch["num_label_tokens"],
            use_cache=False,
        ).loss

    @torch.no_grad()
    def _variances(
        self, routed: torch.Tensor, projected: torch.Tensor, summary: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Variance over images and tokens, mean over channels: targets that a projection makes can collapse."""
        variances = {"variance/student": routed, "variance/coarse": summary}
        variances |= {f"variance/{name}": projected[:, index] for index, name in enumerate(self.names)}
        return {name: features.float().var(dim=(0, 1), correction=0).mean() for name, features in variances.items()}


OBJECTIVES = {"hawaii": HawaiiObjective}


class StudentWithObjective(nn.Module):
    """What the trainer wraps: DDP, FSDP and ZeRO each wrap one module, and all that trains must be under it."""

    def __init__(self, student: HawaiiForConditionalGeneration, objective: nn.Module):
        super().__init__()
        self.student = student
        self.objective = objective

    def forward(self, teacher_features: list[torch.Tensor], batch: dict):
        return self.objective(self.student, teacher_features, batch)

    # The trainer calls the one or the other: transformers 5.23 renamed it.
    def activation_checkpointing_enable(self, **kwargs):
        self.student.activation_checkpointing_enable(**kwargs)

    def gradient_checkpointing_enable(self, **kwargs):
        self.student.gradient_checkpointing_enable(**kwargs)
