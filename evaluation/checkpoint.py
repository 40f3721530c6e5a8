"""Finds a checkpoint, checks it and counts its parameters, without loading its weights."""

import re
from math import prod
from pathlib import Path

from ..files.run_contents import HUB_FOLDER
from ..files.user_error import UserError
from ..hub_cards.card import read_config


INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
AUTO_CLASS = "AutoModelForImageTextToText"
ENCODER_TYPE = "hawaii_vision"  # model_type of an encoder without a language model; importing the class takes seconds


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(snapshot_download(name))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise UserError(
            f"{name} is not a checkpoint: there is no such folder, and no such model could be downloaded from the Hub "
            "(the name is wrong, the model is private, or the Hub is not reachable)."
        ) from error


def _hint(folder: Path) -> str:
    published = folder / HUB_FOLDER
    if (published / "config.json").is_file():
        return f"Did you mean {published}?"
    return "Training saves one in OUTPUT_DIR/hub."


def checkpoint_folder(name: str | Path, or_encoder: bool = False) -> Path:
    """
    Finds a checkpoint and reports problems before anything slow starts.

    Args:
        name (`str` or `Path`):
            A local folder, or a repository on the Hub, which is downloaded.
        or_encoder (`bool`, *optional*, defaults to `False`):
            Whether to accept a HAWAII encoder without a language model.

    Returns:
        `Path`: A folder with the weights and the configuration of an image-text-to-text model.

    Raises:
        UserError: The folder does not exist or is not such a checkpoint.
    """
    folder = Path(name)
    if not folder.exists() and HUB_NAME.fullmatch(str(name)):
        folder = _download(str(name))
    if not folder.is_dir():
        raise UserError(f"{name} is not a checkpoint: there is no such folder. {_hint(folder)}")
    if not (folder / "config.json").is_file():
        raise UserError(f"{name} is not a checkpoint: it has no config.json. {_hint(folder)}")
    if not (folder / WEIGHTS).is_file() and not (folder / INDEX).is_file():
        raise UserError(f"{name} is not a checkpoint: it has no {WEIGHTS}. {_hint(folder)}")
    config = read_config(folder)
    model_type = config.get("model_type")
    if or_encoder and model_type == ENCODER_TYPE:
        return folder

    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    if AUTO_CLASS not in config.get("auto_map", {}) and model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        hint = _hint(folder)
        if model_type == ENCODER_TYPE:
            hint = "It is an encoder without a language model: use it as the vision_tower of a recipe with one."
        raise UserError(
            f"{name} contains a {model_type}, which {AUTO_CLASS} cannot load, so it cannot answer questions about "
            f"images. {hint}"
        )
    return folder


def count_parameters(folder: str | Path) -> int:
    """Number of weights in a folder's safetensors files, read without loading them; tied weights count once."""
    from ..modeling_hawaii.conversion.checkpoint_tensors import CheckpointTensors

    return sum(map(prod, CheckpointTensors(folder).shapes.values()))
