"""Checks of a stage whose language model is frozen: under a LoRA, or quantized."""

from dataclasses import fields
from typing import Any

from ...files.user_error import UserError, explain_errors
from .arguments import HawaiiTrainingArguments, ModelArguments
from .ranges import check_range
from .values import check_names, convert_option


# Initial values that keep the weights of the language model unchanged; PEFT's others change them.
INITIAL_WEIGHTS = (True, False, "gaussian", "orthogonal")
NUMBERS = {"r": int, "lora_alpha": float, "lora_dropout": float}
PATTERNS = {"rank_pattern": "r", "alpha_pattern": "lora_alpha"}  # numbers of single layers
# Fields that a LoRA of a student cannot have.
REFUSED_FIELDS = {
    "modules_to_save": "all weights of the parts in trainable are trained",
    "trainable_token_indices": "the embeddings of words stay frozen",
    "layer_replication": "the merged model would have more layers than its configuration",
    "alora_invocation_tokens": "such an adapter cannot be merged",
    "lora_bias": "such an adapter cannot be merged into layers without a bias",
}


def _convert_number(location: str, name: str, value: Any) -> float:
    number = convert_option(location, name, value, NUMBERS[name])
    check_range(location, name, number)
    return number


def convert_lora(location: str, given: dict) -> dict:
    """
    Checks the fields of a stage's `lora` and returns them with numbers of the right types; PEFT checks most of the
    other values.

    Raises:
        UserError: PEFT has no such field or refuses a value, or a student cannot have the field.
    """
    from peft import LoraConfig, PeftConfig

    check_names(location, "field", given, (field.name for field in fields(LoraConfig)))
    for name in given:
        if name in {field.name for field in fields(PeftConfig)}:
            raise UserError(f"{location}: {name} is set by training; leave it out.")
        if given[name] and name in REFUSED_FIELDS:
            raise UserError(f"{location}: {name} is not supported, because {REFUSED_FIELDS[name]}; leave it out.")
    if given.get("init_lora_weights", True) not in INITIAL_WEIGHTS:
        raise UserError(
            f"{location}: init_lora_weights is {given['init_lora_weights']!r}, which changes the weights of the "
            f"language model; it must be one of {', '.join(map(str, INITIAL_WEIGHTS))}."
        )
    converted = {**given}
    for name in NUMBERS.keys() & given:
        converted[name] = _convert_number(location, name, given[name])
    for pattern in PATTERNS.keys() & given:
        numbers = convert_option(location, pattern, given[pattern], dict)
        converted[pattern] = {
            layer: _convert_number(f"{location}, {pattern} of {layer}", PATTERNS[pattern], number)
            for layer, number in numbers.items()
        }
    with explain_errors(f"{location}: PEFT refuses it"):
        LoraConfig(**{"target_modules": "all-linear", **converted})
    return converted


def check_bitsandbytes(location: str) -> None:
    """Raises a `UserError` if bitsandbytes cannot be imported."""
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"{location}: quantization needs bitsandbytes, which cannot be imported: run "
            '`pip install "hawaii-vlm[quantization]"`.'
        ) from error


def check_frozen_base(location: str, model: ModelArguments, training: HawaiiTrainingArguments) -> None:
    """
    Checks `lora` and `quantization` of a stage against its other options.

    Raises:
        UserError: they freeze the language model although it is in `trainable`, there is a LoRA although it is not, or
            the precision of the weights needs bf16 or fp16.
    """
    if not model.has_frozen_base:
        return
    if model.quantization is not None:
        check_bitsandbytes(location)
    is_trained = "language_model" in training.trainable
    if model.lora is not None and not is_trained:
        raise UserError(
            f"{location}: there is a lora, but trainable is {training.trainable!r}: add language_model, which means "
            "the LoRA, or leave lora out."
        )
    if model.lora is None and is_trained:
        raise UserError(
            f"{location}: quantization {model.quantization} freezes the language model, but it is in trainable; leave "
            "language_model out of trainable, or add lora."
        )
    if model.dtype != "float32" and not (training.bf16 or training.fp16):
        raise UserError(
            f"{location}: dtype is {model.dtype}, which with lora or quantization is the precision of frozen weights "
            "next to trained ones in float32: add bf16: true, or set dtype: float32."
        )
