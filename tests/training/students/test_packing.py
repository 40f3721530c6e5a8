"""Samples packed into one sequence are computed as if each were alone, or the language model is refused."""

import pytest
import torch
from transformers import AutoConfig, AutoModel

from hawaii.files.user_error import UserError
from hawaii.tests.tiny.language_models import FAMILIES
from hawaii.tests.tiny.models import make_model
from hawaii.training.students.packing import check_packing


SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def make_student(model_type, dtype=torch.float32, **fields):
    torch.manual_seed(0)
    student = make_model()
    config = AutoConfig.for_model(model_type, **{**SIZES, **fields})
    student.model.language_model = AutoModel.from_config(config, dtype=dtype).train()
    return student


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_families_of_language_models_keep_packed_rows_apart(family, dtype):
    student = make_student(FAMILIES[family].model_type, dtype, **FAMILIES[family].fields)
    check_packing(student)
    assert student.model.language_model.training


# A recurrent state, positions that are counted from a mask, and custom attention biases.
@pytest.mark.parametrize("model_type", ["mamba", "opt", "falcon", "bloom"])
def test_a_language_model_that_mixes_rows_is_refused(model_type):
    fields = {"state_size": 8} if model_type == "mamba" else {"word_embed_proj_dim": 32} if model_type == "opt" else {}
    with pytest.raises(UserError, match="mixes the rows that are packed into one sequence: leave packing out"):
        check_packing(make_student(model_type, **fields))
