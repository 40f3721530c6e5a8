"""Checks of the model configurations in a recipe."""

import inspect
import math

from transformers import CONFIG_MAPPING, AutoConfig

from ...configuration.configuration_hawaii import HawaiiVisionConfig
from ...files.user_error import UserError
from .values import check_names, convert_option


# transformers accepts these instead of rope_parameters.
OLD_ROPE_FIELDS = ("rope_theta", "rope_scaling", "partial_rotary_factor")
# Fields of an encoder that may have another type than their default.
OTHER_TYPES = {"lora_alpha": float, "router_hidden_size": int | None}
# Smallest values of the encoder's numbers; whole numbers without an entry are at least 1.
MINIMUM = {
    "router_hidden_size": 1,
    "num_teacher_adapters": 0,
    "num_general_adapters": 0,
    "lora_alpha": 0,
    "layer_norm_eps": 0,
    "attention_dropout": 0,
    "initializer_range": 0,
}


def check_vision_config(location: str, given: dict) -> None:
    """
    Raises a `UserError` if [`HawaiiVisionConfig`] lacks a field, a value has another type or is too small, or the
    number of teachers is given.
    """
    if given.get("num_teacher_adapters", 0) != 0:
        raise UserError(
            f"{location}: num_teacher_adapters is the number of teachers; leave it out, or set it to 0 for none."
        )
    parameters = inspect.signature(HawaiiVisionConfig.__init__).parameters
    defaults = {name: field.default for name, field in parameters.items() if name not in ("self", "kwargs")}
    check_names(location, "field", given, defaults)
    for name, value in given.items():
        value = convert_option(location, name, value, OTHER_TYPES.get(name, type(defaults[name])))
        minimum = MINIMUM.get(name, 1 if type(defaults[name]) is int else None)
        if minimum is not None and value is not None and not minimum <= value < math.inf:
            raise UserError(f"{location}: {name} is {value}; it must be at least {minimum}.")


def check_text_config(location: str, given: dict) -> None:
    """Raises a `UserError` if transformers knows no such language model, or its configuration lacks a field."""
    model_type = given.get("model_type", "llama")
    check_names(location, "model_type", [model_type], CONFIG_MAPPING)
    config = AutoConfig.for_model(model_type)
    known = ["model_type", *config.attribute_map, *(name for name in vars(config) if not name.startswith("_"))]
    check_names(location, "field", given, known + [*(OLD_ROPE_FIELDS if hasattr(config, "rope_parameters") else ())])
