"""Passes of the student's encoder over a batch of images."""

import torch

from ...modeling_hawaii.modeling_hawaii import HawaiiForConditionalGeneration
from ...modeling_hawaii.vision_hawaii import HawaiiVisionModel


# A student is a complete model, or an encoder that is trained without a language model.
Student = HawaiiForConditionalGeneration | HawaiiVisionModel
# Shapes: S squares, I squares that teachers see, N teacher-specific adapters, m patches, D width.


def encoder_of(student: Student) -> HawaiiVisionModel:
    """Returns the encoder of a student, which may be the student itself."""
    return student if isinstance(student, HawaiiVisionModel) else student.model.vision_tower


def routed_pass(student: Student, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    Runs the encoder with its routers.

    Args:
        student (`HawaiiForConditionalGeneration` or `HawaiiVisionModel`):
            The model that is trained.
        pixel_values (`torch.FloatTensor` of shape `(num_squares, num_channels, image_size, image_size)`):
            Normalised squares: one per image, or its tiles.

    Returns:
        The features of the patches, `(num_squares, num_patches, hidden_size)`, and the routers' probabilities as in
        [`HawaiiVisionOutput`], `None` without adapters.
    """
    encoder = encoder_of(student)
    output = encoder(pixel_values, output_routing=True)
    return output.last_hidden_state[:, encoder.config.num_prefix_tokens :], output.router_probabilities


def routed_and_forced_passes(
    student: Student, pixel_values: torch.Tensor, sequential_passes: bool, distilled: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Runs the encoder with its routers on all squares, and with each teacher-specific adapter alone on those that
    teachers see.

    Args:
        student, pixel_values:
            As for [`routed_pass`].
        sequential_passes (`bool`):
            Whether to run one pass after another instead of one batch; the results are the same.
        distilled (`torch.FloatTensor` of shape `(num_distilled, num_channels, image_size, image_size)`, *optional*):
            The squares that teachers see; all if not given.

    Returns:
        The routed features `(num_squares, num_patches, hidden_size)`, the forced ones
        `(num_distilled, num_teacher_adapters, num_patches, hidden_size)`, and the routers' probabilities of the routed
        pass.
    """
    encoder, distilled = encoder_of(student), pixel_values if distilled is None else distilled
    num_squares, num_distilled = pixel_values.shape[0], distilled.shape[0]
    num_adapters, num_prefix = encoder.config.num_teacher_adapters, encoder.config.num_prefix_tokens
    forced = torch.arange(num_adapters, device=pixel_values.device).repeat_interleave(num_distilled)  # (N * I,)
    if sequential_passes:
        outputs = [
            encoder(distilled, adapters=adapters, output_routing=True).last_hidden_state
            for adapters in forced.split(num_distilled)
        ]
        output = encoder(pixel_values, output_routing=True)
        routed, passes, probabilities = output.last_hidden_state, torch.cat(outputs), output.router_probabilities
    else:
        adapters = torch.cat([forced.new_full((num_squares,), -1), forced])
        squares = torch.cat([pixel_values, *[distilled] * num_adapters])
        output = encoder(squares, adapters=adapters, output_routing=True)
        routed, passes = output.last_hidden_state.split([num_squares, len(forced)])
        probabilities = output.router_probabilities[:, :num_squares]
    passes = passes.unflatten(0, (num_adapters, num_distilled)).transpose(0, 1)  # (I, N, P, D)
    return routed[:, num_prefix:], passes[:, :, num_prefix:], probabilities
