"""Adds rows for new tokens to a language model."""

import torch
from transformers import PreTrainedModel


# Matrices whose height is not a multiple of this are slow on accelerators.
VOCABULARY_MULTIPLE = 64


@torch.no_grad()
def grow_vocabulary(model: PreTrainedModel, num_tokens: int) -> None:
    """
    Adds embedding and head rows up to a multiple of 64 if a model has fewer than `num_tokens`. New rows are the mean
    of the old ones, so that new tokens start neither more nor less likely than others.
    """
    num_rows = model.get_input_embeddings().num_embeddings
    if num_tokens <= num_rows:
        return
    # transformers would sample from the old rows' distribution: its covariance takes long and much memory at 7B.
    model.resize_token_embeddings(num_tokens, pad_to_multiple_of=VOCABULARY_MULTIPLE, mean_resizing=False)
    for rows in (*model.get_input_embeddings().parameters(), *model.get_output_embeddings().parameters()):
        rows[num_rows:] = rows[:num_rows].mean(dim=0, dtype=torch.float32)
