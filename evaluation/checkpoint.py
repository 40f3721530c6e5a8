"""A published folder, seen from outside: found, checked and measured without loading a weight."""

import json
import re
from math import prod
from pathlib import Path

from ..files.run_contents import HUB_FOLDER
from ..files.user_error import UserError


INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
AUTO_CLASS = "AutoModelForImageTextToText"
ENCODER_TYPE = "hawaii_vision"  # what the configuration of a HAWAII's encoder says, told without importing it


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(snapshot_download(name))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise UserError(
            f"{name} is not a checkpoint: there is no such folder, and the Hub gives no model of that name "
            "(misspelled, private, or not reached)."
        ) from error


def _is_known(model_type: str | None) -> bool:
    """Whether transformers itself has such a model."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    return model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES


def _way_out(folder: Path) -> str:
    published = folder / HUB_FOLDER
    if (published / "config.json").is_file():
        return f"Did you mean {published}?"
    return "Training leaves one in OUTPUT_DIR/hub."


def checkpoint_folder(name: str | Path, or_encoder: bool = False) -> Path:
    """
    Finds a checkpoint, and says what is wrong before anything slow begins.

    Args:
        name (`str` or `Path`):
            A folder on this machine, or a name on the Hub, which is downloaded.
        or_encoder (`bool`, *optional*, defaults to `False`):
            Whether a HAWAII's encoder without a language model will do.

    Returns:
        `Path`: a folder that holds weights and the configuration of a model that answers about images.

    Raises:
        ValueError: there is no such folder, or it holds something else.
    """
    folder = Path(name)
    if not folder.exists() and HUB_NAME.fullmatch(str(name)):
        folder = _download(str(name))
    if not folder.is_dir():
        raise UserError(f"{name} is not a checkpoint: there is no such folder. {_way_out(folder)}")
    if not (folder / "config.json").is_file():
        raise UserError(f"{name} is not a checkpoint: it holds no config.json. {_way_out(folder)}")
    if not (folder / WEIGHTS).is_file() and not (folder / INDEX).is_file():
        raise UserError(f"{name} is not a checkpoint: it holds no {WEIGHTS}. {_way_out(folder)}")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kind = config.get("model_type")
    if or_encoder and kind == ENCODER_TYPE:
        return folder
    if AUTO_CLASS not in config.get("auto_map", {}) and not _is_known(kind):
        way_out = _way_out(folder)
        if kind == ENCODER_TYPE:
            way_out = "It is an encoder without a language model: name it as the vision_tower of a recipe with one."
        raise UserError(
            f"{name} holds a {kind}, which {AUTO_CLASS} does not load: it answers no questions about images. {way_out}"
        )
    return folder


def count_parameters(folder: str | Path) -> int:
    """Number of weights in a folder's safetensors files, read without loading them; tied weights count once."""
    from ..modeling_hawaii.conversion.checkpoint_tensors import CheckpointTensors

    return sum(map(prod, CheckpointTensors(folder).shapes.values()))
