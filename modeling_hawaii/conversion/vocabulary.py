"""Rows for tokens that a language model did not have."""

import torch
from transformers import PreTrainedModel


# Matrices of other heights are slow on accelerators.
VOCABULARY_MULTIPLE = 64


@torch.no_grad()
def grow_vocabulary(model: PreTrainedModel, num_tokens: int) -> None:
    """
    Gives a model a row for each token where it has too few, up to a multiple of 64. New rows are the mean of the old,
    so that new tokens are neither likelier nor less likely than any other.
    """
    num_rows = model.get_input_embeddings().num_embeddings
    if num_tokens <= num_rows:
        return
    # transformers would draw from the old rows' distribution: a covariance, which takes long and much memory at 7B.
    model.resize_token_embeddings(num_tokens, pad_to_multiple_of=VOCABULARY_MULTIPLE, mean_resizing=False)
    for rows in (*model.get_input_embeddings().parameters(), *model.get_output_embeddings().parameters()):
        rows[num_rows:] = rows[:num_rows].mean(dim=0, dtype=torch.float32)
