"""Passes of the student's encoder over a batch of images."""

import torch

from ...modeling_hawaii.modeling_hawaii import HawaiiForConditionalGeneration
from ...modeling_hawaii.vision_hawaii import HawaiiVisionModel


# A student is a complete model, or an encoder that is trained without a language model.
Student = HawaiiForConditionalGeneration | HawaiiVisionModel
# Shapes: I images, N teacher-specific adapters, m patches, D width.


def encoder_of(student: Student) -> HawaiiVisionModel:
    """Returns the encoder of a student, which may be the student itself."""
    return student if isinstance(student, HawaiiVisionModel) else student.model.vision_tower


def routed_pass(student: Student, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    Runs the encoder with its routers.

    Args:
        student (`HawaiiForConditionalGeneration` or `HawaiiVisionModel`):
            The model that is trained.
        pixel_values (`torch.FloatTensor` of shape `(num_images, num_channels, image_size, image_size)`):
            Normalised images.

    Returns:
        The features of the patches, `(num_images, num_patches, hidden_size)`, and the routers' probabilities as in
        [`HawaiiVisionOutput`], `None` without adapters.
    """
    encoder = encoder_of(student)
    output = encoder(pixel_values, output_routing=True)
    return output.last_hidden_state[:, encoder.config.num_prefix_tokens :], output.router_probabilities


def routed_and_forced_passes(
    student: Student, pixel_values: torch.Tensor, sequential_passes: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Runs the encoder with its routers, and with each teacher-specific adapter alone.

    Args:
        student, pixel_values:
            As for [`routed_pass`].
        sequential_passes (`bool`):
            Whether to run one pass after another instead of one batch; the results are the same.

    Returns:
        The routed features `(num_images, num_patches, hidden_size)`, the forced ones
        `(num_images, num_teacher_adapters, num_patches, hidden_size)`, and the routers' probabilities of the routed
        pass.
    """
    encoder = encoder_of(student)
    num_images, num_passes = pixel_values.shape[0], 1 + encoder.config.num_teacher_adapters
    adapters = torch.arange(-1, num_passes - 1, device=pixel_values.device).repeat_interleave(num_images)
    if sequential_passes:
        outputs = [
            encoder(pixel_values, adapters=chosen, output_routing=True) for chosen in adapters.split(num_images)
        ]
        passes = torch.stack([output.last_hidden_state for output in outputs])
        probabilities = outputs[0].router_probabilities
    else:
        output = encoder(pixel_values.repeat(num_passes, 1, 1, 1), adapters=adapters, output_routing=True)
        passes = output.last_hidden_state.unflatten(0, (num_passes, num_images))
        probabilities = output.router_probabilities[:, :num_images]
    passes = passes[:, :, encoder.config.num_prefix_tokens :]  # (1 + N, I, m, D), without prefix tokens
    return passes[0], passes[1:].transpose(0, 1), probabilities
