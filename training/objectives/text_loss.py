"""The language model's loss, a part of every objective."""

import torch

from ...modeling_hawaii.modeling_hawaii import HawaiiForConditionalGeneration
from ...modeling_hawaii.vision_hawaii import HawaiiVisionModel
from .encoder_passes import Student


def text_loss(
    student: HawaiiForConditionalGeneration, image_features: torch.Tensor, batch: dict[str, torch.Tensor]
) -> torch.Tensor:
    """
    L_gen (eq. 1): cross-entropy of the answers, a mean over the label tokens of the step; zero without any.

    Args:
        student (`HawaiiForConditionalGeneration`):
            The model that is trained.
        image_features (`torch.FloatTensor` of shape `(num_images, num_patches, hidden_size)`):
            Features of its encoder, before the projector.
        batch (`dict`):
            Output of the collator, with `num_label_tokens`.
    """
    model = student.model
    inputs_embeds = model.merge_image_features(
        model.find_image_tokens(batch["input_ids"], None),
        model.get_input_embeddings()(batch["input_ids"]),
        model.multi_modal_projector(image_features),
    )
    return student(
        inputs_embeds=inputs_embeds,
        attention_mask=batch["attention_mask"],
        labels=batch["labels"],
        num_items_in_batch=batch["num_label_tokens"].clamp(min=1),
        use_cache=False,
    ).loss


def text_terms(
    student: Student, image_features: torch.Tensor, batch: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Returns the term `text` of an objective, or no term for an encoder without a language model."""
    return {} if isinstance(student, HawaiiVisionModel) else {"text": text_loss(student, image_features, batch)}
