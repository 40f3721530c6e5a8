"""Floating-point operations of training steps, computed from the sizes of the parts' inputs."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..counting.teachers import count_flops
from ..objectives.encoder_passes import encoder_of
from ..recipes.objectives import StudentWithObjective


def _shape(parameter: Any) -> torch.Size:
    """The shape of a weight, even if ZeRO-3 has partitioned it or bitsandbytes has packed it into 4 bits."""
    if getattr(parameter, "quant_state", None) is not None:
        return parameter.quant_state.shape
    return getattr(parameter, "ds_shape", parameter.shape)


def _matrices(module: nn.Module, *left_out: nn.Parameter | None) -> tuple[int, int]:
    """Numbers of elements of a module's weight matrices: of all of them, and of the trainable ones."""
    skipped = {id(parameter) for parameter in left_out}
    matrices = [p for p in module.parameters() if len(_shape(p)) > 1 and id(p) not in skipped]
    return sum(_shape(p).numel() for p in matrices), sum(_shape(p).numel() for p in matrices if p.requires_grad)


class StepFlops:
    """
    Counts the operations of forward and backward passes without recomputation, as MFU does. For each weight and token:
    2 in the forward pass, 2 for the gradient of the input if an earlier weight is trainable, and 2 for the gradient of
    a trainable weight. Attention has twice as many in the backward pass as in the forward pass; packed samples count
    as one sequence. Hooks only read shapes, so the device is not synchronised.

    Args:
        module (`StudentWithObjective`):
            The trained module, with its frozen parts, not yet wrapped.
        teachers (`list`):
            Teachers; those without a model, such as cached ones, are not counted.
    """

    def __init__(self, module: StudentWithObjective, teachers: list):
        self.count = 0
        self.num_teacher_images = 0
        self._teachers, self._teacher_flops = teachers, None
        student: Any = module.student
        encoder = encoder_of(student)
        vision, embeddings = encoder.config, encoder.embeddings
        learns = any(parameter.requires_grad for parameter in encoder.parameters())
        num_tokens = vision.num_prefix_tokens + vision.num_patches
        weights, learning = _matrices(encoder, embeddings.position_embedding)
        attention = 4 * vision.num_hidden_layers * num_tokens**2 * vision.hidden_size
        per_image = num_tokens * 2 * (weights * (2 if learns else 1) + learning) + attention * (3 if learns else 1)
        self._hook(encoder, lambda module, args, kwargs: per_image * args[0].shape[0])
        for linear in module.objective.modules():
            if isinstance(linear, nn.Linear):
                self._watch(linear, is_input_learned=linear.weight.requires_grad)
        if encoder is student:
            return
        for linear in student.model.multi_modal_projector.modules():
            if isinstance(linear, nn.Linear):
                self._watch(linear, is_input_learned=learns or linear.weight.requires_grad)
        before = [*encoder.parameters(), *student.model.multi_modal_projector.parameters()]
        language_model, words = student.model.language_model, student.get_input_embeddings()
        has_gradient = any(p.requires_grad for p in [*before, *language_model.parameters()])
        weights, learning = _matrices(language_model, words.weight)
        config = student.config.text_config.get_text_config()
        per_pair = 4 * config.num_hidden_layers * config.hidden_size * (3 if has_gradient else 1)
        per_token = 2 * (weights * (2 if has_gradient else 1) + learning)

        def count_language_model(module, args: tuple, kwargs: dict) -> int:
            num_samples, length = kwargs["inputs_embeds"].shape[:2]
            return num_samples * (length * per_token + length**2 * per_pair)

        self._hook(language_model, count_language_model)
        self._watch(student.get_output_embeddings(), is_input_learned=has_gradient)

    def _hook(self, module: nn.Module, count: Callable[[nn.Module, tuple, dict], int]) -> None:
        def add(module, args, kwargs):
            if torch.is_grad_enabled():  # not in evaluations
                self.count += count(module, args, kwargs)

        # Not compiled, because it would be compiled again for every new count.
        module.register_forward_pre_hook(torch.compiler.disable(add), with_kwargs=True)

    def _watch(self, linear: nn.Module, is_input_learned: bool) -> None:
        weight: Any = linear.weight
        per_row = 2 * _shape(weight).numel() * (1 + is_input_learned + weight.requires_grad)
        self._hook(linear, lambda module, args, kwargs: per_row * args[0].shape[:-1].numel())

    def take(self) -> int:
        """Returns the operations of this process since the last call, with those of the teachers."""
        if self._teacher_flops is None:
            self._teacher_flops = sum(map(self._count_teacher, self._teachers))
        flops = self.count + self.num_teacher_images * self._teacher_flops
        self.count = self.num_teacher_images = 0
        return flops

    @staticmethod
    def _count_teacher(teacher) -> int:
        if getattr(teacher, "model", None) is None:
            return 0
        side, device = teacher.image_size, next(teacher.model.parameters()).device
        return count_flops(lambda: teacher(torch.zeros(1, 3, side, side, dtype=torch.uint8, device=device)))
