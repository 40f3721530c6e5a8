"""Checks that a folder contains a complete HAWAII or HAWAII encoder, as this package saved it."""

from pathlib import Path

import torch
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.utils import logging

from ...files.atomic import read_json
from ...files.model_folder import check_model_folder, open_tensors
from ...files.user_error import UserError, explain_errors
from ..modeling_hawaii import HawaiiForConditionalGeneration
from ..vision_hawaii import HawaiiVisionModel
from .checkpoint_tensors import CheckpointTensors, find_weight_files


MODEL_CLASSES = {
    model_class.config_class.model_type: model_class
    for model_class in (HawaiiForConditionalGeneration, HawaiiVisionModel)
}
# Without one of these transformers loads something else, most often without a message.
ENCODER_FILES = ("config.json", "preprocessor_config.json")
MODEL_FILES = (
    *ENCODER_FILES,
    "processor_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "chat_template.jinja",
    "generation_config.json",
)


def _load_without_memory(model_class: type, folder: Path) -> dict:
    """How transformers would load the weights; see `output_loading_info` of `from_pretrained`."""
    verbosity, shows_progress = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # the report is in the error
    logging.disable_progress_bar()
    try:
        with explain_errors(f"{folder} could not be loaded"):
            _, report = model_class.from_pretrained(  # pyright: ignore[reportAttributeAccessIssue]
                folder, device_map={"": "meta"}, ignore_mismatched_sizes=True, output_loading_info=True
            )
    finally:
        logging.set_verbosity(verbosity)
        if shows_progress:
            logging.enable_progress_bar()
    return report


def check_saved_model(folder: str | Path) -> list[str]:
    """
    Checks that a local folder contains a complete HAWAII or HAWAII encoder: every file that loading it needs, none
    damaged, and in the weights every tensor of the model that `config.json` describes (not while DeepSpeed ZeRO-3 is
    in use, nor for a quantized model). Reads no weights.

    Returns:
        `list[str]`: names of tensors in the weights that the model does not have, which are ignored when it is loaded.

    Raises:
        UserError: something is missing or damaged; the error names the file or the tensor.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} is not a saved HAWAII: it has no config.json.")
    values = read_json(folder / "config.json")
    model_type = values.get("model_type")
    if not isinstance(model_type, str) or model_type not in MODEL_CLASSES:
        raise UserError(f"{folder} is not a saved HAWAII: its config.json describes a model of type {model_type!r}.")
    model_class = MODEL_CLASSES[model_type]
    for name in ENCODER_FILES if model_class is HawaiiVisionModel else MODEL_FILES:
        if not (folder / name).is_file():
            raise UserError(f"{folder} is not a saved HAWAII: it has no {name}. Restore the file.")
    check_model_folder(folder)
    CheckpointTensors(folder)  # every file is there and has its length
    if is_deepspeed_zero3_enabled() or "quantization_config" in values:
        return []  # every process would have to take part in building the model; a quantized one has other tensors
    report = _load_without_memory(model_class, folder)
    names = ", ".join(path.name for path in find_weight_files(str(folder)))
    if missing := sorted(report["missing_keys"]):
        raise UserError(
            f"{folder} is not a complete HAWAII: its weights ({names}) lack {len(missing)} tensors, such as "
            f"{missing[0]}. Restore the file, or save the model again."
        )
    for name, found, expected in report["mismatched_keys"]:
        raise UserError(
            f"{folder} is not a saved HAWAII: {name} has the shape {list(found)} in its weights and {list(expected)} "
            "in its config.json. One of the files belongs to another model."
        )
    return sorted(report["unexpected_keys"])


def check_weights_are_finite(folder: str | Path) -> None:
    """
    Checks the values of a folder's weights, one tensor at a time.

    Raises:
        UserError: a value is infinite or not a number; the error names the file and the tensor.
    """
    for path in find_weight_files(str(folder)):
        with open_tensors(path) as file:
            for name in file.keys():
                tensor = file.get_tensor(name)
                if tensor.is_floating_point() and tensor.element_size() == 1:
                    tensor = tensor.float()  # not every operation exists for 8 bits
                if not torch.isfinite(tensor).all():
                    raise UserError(
                        f"{path}: {name} has values that are not finite (NaN or infinity). The training diverged: "
                        "train again with a smaller learning rate, or start from an earlier checkpoint."
                    )
