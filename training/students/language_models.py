"""The student's language model, pretrained or with random weights, with an embedding for each token."""

import torch
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ...files.atomic import read_json
from ...files.custom_code import find_code, refuse_code
from ...files.sources import check_source
from ...files.user_error import UserError, explain_errors
from ...modeling_hawaii.conversion.checkpoint_tensors import find_file
from ...modeling_hawaii.conversion.vocabulary import grow_vocabulary
from ..recipes.arguments import ModelArguments


@torch.no_grad()
def _check_head(language_model: PreTrainedModel) -> None:
    """Raises an error for a head that scales or caps its scores: the student's head is only a matrix and a bias."""
    language_model.eval()
    input_ids = torch.tensor([[0, 1]])
    hidden_states = language_model.base_model(input_ids, use_cache=False).last_hidden_state
    expected = language_model(input_ids, use_cache=False).logits
    head = language_model.get_output_embeddings()
    scores = nn.functional.linear(hidden_states, head.weight, head.bias)
    # Random weights give scores far below a cap, so the comparison would not show it.
    is_capped = getattr(language_model.config, "final_logit_softcapping", None)
    if is_capped or not torch.allclose(scores.float(), expected.float(), rtol=1e-3, atol=1e-3):
        raise UserError(
            f"The head of {type(language_model).__name__} does more than multiply by one matrix and add a bias (it "
            "scales or caps its scores), which a HAWAII's does not; use another language model."
        )


def _raw_config(checkpoint: str) -> dict:
    path = find_file(checkpoint, "config.json")
    return {} if path is None else read_json(path)


def register_code(checkpoint: str) -> None:
    """
    Runs the code of a language model whose type transformers does not have, and registers its classes for this
    process: then the student, which has the type in its configuration, can be built, saved and loaded. The code of a
    type that transformers has is not run: a saved student would be loaded with transformers' class.

    Raises:
        UserError: the code fails.
    """
    values = _raw_config(checkpoint)
    if values.get("model_type") in CONFIG_MAPPING or not find_code(values):
        return
    with explain_errors(f"The code of the language_model {checkpoint} fails"):
        config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=True)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=True)
        AutoConfig.register(config.model_type, type(config))
        # Not `register` of the Auto classes: code may add a configuration to transformers' own model.
        AutoModelForCausalLM._model_mapping.register(type(config), type(model))
        AutoModel._model_mapping.register(type(config), type(model.base_model))


def read_config(checkpoint: str) -> PretrainedConfig:
    """
    Reads the configuration of a recipe's language model.

    Raises:
        UserError: it cannot be read, or needs code that is not trusted.
    """
    try:
        with explain_errors(f"The language_model {checkpoint} could not be loaded"):
            # Without the option transformers would ask on the terminal.
            return AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
    except UserError as error:
        values = _raw_config(checkpoint)
        if values.get("model_type") not in CONFIG_MAPPING and (references := find_code(values)):
            hint = "set trust_remote_code: true in the recipe"
            raise refuse_code(f"The language_model {checkpoint}", checkpoint, references, hint) from error
        raise


def build_language_model(
    model_args: ModelArguments, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype
) -> PreTrainedModel:
    """
    Builds the language model that a recipe names, with an embedding for each token of the tokenizer.

    Raises:
        UserError: the language model cannot be loaded, needs code that is not trusted, takes images already, or has a
            head that is more than a matrix and a bias.
    """
    checkpoint = model_args.language_model
    # The embedding of a padding token gets no gradient, so an end token must not be the model's padding token.
    if checkpoint is not None:
        check_source("language_model", checkpoint)
        problem = f"The language_model {checkpoint} could not be loaded"
        if model_args.trust_remote_code:
            register_code(checkpoint)
        config = read_config(checkpoint)
        if config.get_text_config() is not config:
            raise UserError(
                f"{checkpoint} is a {config.model_type}, a model that takes images or sound already; name a language "
                "model for text alone."
            )
        ends = getattr(config, "eos_token_id", None)
        if getattr(config, "pad_token_id", None) in (ends if isinstance(ends, list) else [ends]):
            config.pad_token_id = None
        # The precision is set when loading: `to` would also round the buffers of rotary embeddings.
        with explain_errors(problem):
            model = AutoModelForCausalLM.from_pretrained(
                checkpoint, config=config, dtype=dtype, use_safetensors=True, trust_remote_code=False
            )
        grow_vocabulary(model, len(tokenizer))
    else:
        assert model_args.text_config is not None
        fields = {**model_args.text_config, "vocab_size": len(tokenizer)}
        fields |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        fields["pad_token_id"] = tokenizer.pad_token_id if tokenizer.pad_token_id != tokenizer.eos_token_id else None
        model_type = fields.pop("model_type", "llama")
        with explain_errors("A language model cannot be built from text_config"):
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **fields), dtype=dtype)
    _check_head(model)
    return model
