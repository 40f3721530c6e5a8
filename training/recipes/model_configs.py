"""Checks of the model configurations in a recipe."""

import inspect

from transformers import CONFIG_MAPPING, AutoConfig

from ...configuration.configuration_hawaii import HawaiiVisionConfig
from ...files.user_error import UserError
from .options import check_names


# transformers accepts these instead of rope_parameters.
OLD_ROPE_FIELDS = ("rope_theta", "rope_scaling", "partial_rotary_factor")


def check_vision_config(place: str, given: dict) -> None:
    """Raises a `UserError` if [`HawaiiVisionConfig`] lacks a field, or the number of teachers is given."""
    if given.get("num_teacher_adapters", 0) != 0:
        raise UserError(
            f"{place}: num_teacher_adapters is the number of teachers; leave it out, or set it to 0 for none."
        )
    parameters = inspect.signature(HawaiiVisionConfig.__init__).parameters
    check_names(place, "field", given, [name for name in parameters if name not in ("self", "kwargs")])


def check_text_config(place: str, given: dict) -> None:
    """Raises a `UserError` if transformers knows no such language model, or its configuration lacks a field."""
    model_type = given.get("model_type", "llama")
    check_names(place, "model_type", [model_type], CONFIG_MAPPING)
    config = AutoConfig.for_model(model_type)
    known = ["model_type", *config.attribute_map, *(name for name in vars(config) if not name.startswith("_"))]
    check_names(place, "field", given, known + [*(OLD_ROPE_FIELDS if hasattr(config, "rope_parameters") else ())])
