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

    The head runs only where the next token is a label: scores of every position of a batch would be the largest
    tensors of the step. The collator finds these positions, because finding them on a device would require a
    synchronisation.

    Args:
        student (`HawaiiForConditionalGeneration`):
            The model that is trained.
        image_features (`torch.FloatTensor` of shape `(num_squares, num_patches, hidden_size)`):
            Features of its encoder for all squares, before the projector.
        batch (`dict`):
            Output of the collator, with `num_label_tokens`.
    """
    model = student.model
    inputs_embeds = model.merge_image_features(
        model.find_image_tokens(batch["input_ids"], None),
        model.get_input_embeddings()(batch["input_ids"]),
        model.multi_modal_projector(image_features),
        model.find_grids(None, batch.get("image_sizes")),
    )
    # Padded samples have a mask; packed ones have positions, by which transformers' attention keeps them apart.
    context = {name: batch.get(name) for name in ("attention_mask", "position_ids")}
    outputs = model(inputs_embeds=inputs_embeds, use_cache=False, **context)
    # A token is predicted from the position before it.
    predicting = outputs.last_hidden_state.flatten(0, 1).index_select(0, batch["label_index"] - 1)  # (num_labels, D)
    return student.loss_function(
        logits=student.lm_head(predicting),
        labels=None,
        shift_labels=batch["labels"].flatten().index_select(0, batch["label_index"]),
        vocab_size=student.config.text_config.vocab_size,
        num_items_in_batch=batch["num_label_tokens"].clamp(min=1),
    )


def text_terms(
    student: Student, image_features: torch.Tensor, batch: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Returns the term `text` of an objective, or no term for an encoder without a language model."""
    return {} if isinstance(student, HawaiiVisionModel) else {"text": text_loss(student, image_features, batch)}
