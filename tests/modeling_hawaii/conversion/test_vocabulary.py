"""New tokens get rows that leave the relative likelihood of the old ones unchanged."""

import pytest
import torch

from hawaii.modeling_hawaii.conversion.vocabulary import VOCABULARY_MULTIPLE, grow_vocabulary
from hawaii.tests.tiny.models import make_model


def num_tokens(model):
    return model.get_input_embeddings().num_embeddings


@pytest.mark.parametrize("fields", [{}, {"tie_word_embeddings": True}], ids=["untied", "tied"])
@torch.no_grad()
def test_new_rows_up_to_a_multiple_of_64_are_the_mean_of_the_old(fields):
    model = make_model(text=fields)
    old = num_tokens(model)
    matrices = [model.get_input_embeddings().weight.clone(), model.lm_head.weight.clone()]
    grow_vocabulary(model, old + 1)
    assert num_tokens(model) == model.config.text_config.vocab_size == (old // 64 + 1) * VOCABULARY_MULTIPLE
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == bool(fields)
    for before, after in zip(matrices, (model.get_input_embeddings().weight, model.lm_head.weight)):
        assert torch.equal(after[:old], before)
        torch.testing.assert_close(after[old:], before.mean(dim=0).expand(len(after) - old, -1))


def test_a_large_enough_vocabulary_is_unchanged():
    model = make_model()
    weight = model.get_input_embeddings().weight
    grow_vocabulary(model, num_tokens(model))
    assert model.get_input_embeddings().weight is weight
