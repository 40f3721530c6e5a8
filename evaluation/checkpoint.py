"""Finds a checkpoint, checks it and counts its parameters, without loading its weights."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path

from ..files.atomic import read_json
from ..files.custom_code import find_code, refuse_code
from ..files.escape import flatten
from ..files.model_folder import INDEX, WEIGHTS, check_model_folder
from ..files.run_contents import HUB_FOLDER
from ..files.user_error import UserError
from ..hub_cards.card import read_config
from ..hub_cards.released_code import find_other_code


logger = logging.getLogger(__name__)

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
AUTO_CLASS = "AutoModelForImageTextToText"
# model_type of a HAWAII and of an encoder without a language model; importing the classes takes seconds
MODEL_TYPE, ENCODER_TYPE = "hawaii", "hawaii_vision"
# Files that name a class, and the field with the name of a class that transformers has.
CLASS_FIELDS = {
    "processor_config.json": "processor_class",
    "preprocessor_config.json": "image_processor_type",
    "tokenizer_config.json": "tokenizer_class",
}


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(snapshot_download(name))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise UserError(
            f"{name} is not a checkpoint: there is no such folder, and no such model could be downloaded from the Hub "
            "(the name is wrong, the model is private, or the Hub is not reachable)."
        ) from error


def _hint(folder: Path) -> str:
    published = folder / HUB_FOLDER
    if (published / "config.json").is_file():
        return f"Did you mean {published}?"
    return "Training saves one in OUTPUT_DIR/hub."


@contextmanager
def explain_damage(name: str | Path) -> Iterator[None]:
    """Adds the name of the checkpoint to an error that names one of its files."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{name} could not be loaded: {error}") from error


def _chat_templates(folder: Path) -> Iterator[tuple[Path, str]]:
    """Every chat template in a folder, with the file that contains it."""
    for path in [*folder.glob("chat_template.jinja"), *folder.glob("additional_chat_templates/*.jinja")]:
        yield path, path.read_text(encoding="utf-8", errors="replace")
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        path = folder / name
        saved = read_json(path).get("chat_template") if path.is_file() else None
        templates = saved.values() if isinstance(saved, dict) else saved if isinstance(saved, list) else [saved]
        for template in templates:  # a tokenizer's is a list of mappings if it has several
            template = template.get("template") if isinstance(template, dict) else template
            if isinstance(template, str):
                yield path, template


def _check_chat_templates(folder: Path) -> None:
    from ..processing.chat_templates.limits import check_rendering

    for file, template in _chat_templates(folder):
        check_rendering(template, subject=f"The chat template in {file}")


def _needed_code(folder: Path, model_type: str) -> list[str]:
    """Classes that loading a folder needs and transformers does not have; see [`find_code`]."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    from .. import HawaiiProcessor  # from the root, which registers it
    from ..processing.image_processing_hawaii import HawaiiImageProcessor

    references = []
    if model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        references += find_code(read_json(folder / "config.json"))
    for file, field in CLASS_FIELDS.items():
        values = read_json(folder / file) if (folder / file).is_file() else {}
        name = str(values.get(field))
        installed = (HawaiiProcessor.__name__, HawaiiImageProcessor.__name__)
        if not hasattr(transformers, name) and name not in installed:
            references += find_code(values)
    return references


def _warn_of_other_code(name: str | Path, folder: Path) -> None:
    if changed := find_other_code(folder):
        names = ", ".join(map(flatten, changed))  # a folder of others may name a file with control characters
        logger.warning(
            f"{name} contains code of no released version of hawaii-vlm: {names}. It does not run here, because "
            "this command uses the installed code, but wherever trust_remote_code is set."
        )


def checkpoint_folder(name: str | Path, or_encoder: bool = False, trust_remote_code: bool = False) -> Path:
    """
    Finds a checkpoint and reports problems before anything slow starts. Logs a warning if a HAWAII contains code of no
    released version.

    Args:
        name (`str` or `Path`):
            A local folder, or a repository on the Hub, which is downloaded.
        or_encoder (`bool`, *optional*, defaults to `False`):
            Whether to accept a HAWAII encoder without a language model.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to accept another model that needs code of its own.

    Returns:
        `Path`: A folder with the weights and the configuration of an image-text-to-text model.

    Raises:
        UserError: The folder does not exist, is not such a checkpoint, is incomplete or damaged, or needs code that is
            not trusted.
    """
    if not str(name):
        raise UserError("The name of the checkpoint is empty.")  # its path would be the working directory
    folder = Path(name)
    if not folder.exists() and HUB_NAME.fullmatch(str(name)):
        folder = _download(str(name))
    if not folder.is_dir():
        raise UserError(
            f"{name} is not a checkpoint: there is no such folder, and a repository of the Hub is named user/name. "
            f"{_hint(folder)}"
        )
    with explain_damage(name):
        check_model_folder(folder)
        _check_chat_templates(folder)
    if not (folder / "config.json").is_file():
        raise UserError(f"{name} is not a checkpoint: it has no config.json. {_hint(folder)}")
    if not (folder / WEIGHTS).is_file() and not (folder / INDEX).is_file():
        raise UserError(f"{name} is not a checkpoint: it has no {WEIGHTS}. {_hint(folder)}")
    config = read_config(folder)
    model_type = str(config.get("model_type"))
    if model_type == MODEL_TYPE or (or_encoder and model_type == ENCODER_TYPE):
        from ..modeling_hawaii.conversion.saved_model import check_saved_model

        with explain_damage(name):
            check_saved_model(folder)
        _warn_of_other_code(name, folder)
        return folder

    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    if (
        AUTO_CLASS not in (config.get("auto_map") or {})
        and model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    ):
        hint = _hint(folder)
        if model_type == ENCODER_TYPE:
            hint = "It is an encoder without a language model: use it as the vision_tower of a recipe with one."
        raise UserError(
            f"{name} contains a {model_type}, which {AUTO_CLASS} cannot load, so it cannot answer questions about "
            f"images. {hint}"
        )
    with explain_damage(name):
        count_parameters(folder)  # opens the weights of every file
    if not trust_remote_code and (references := _needed_code(folder, model_type)):
        raise refuse_code(str(name), folder, references, "add --trust-remote-code")
    return folder


def count_parameters(folder: str | Path) -> int:
    """Number of weights in a folder's safetensors files, read without loading them; tied weights count once."""
    from ..modeling_hawaii.conversion.checkpoint_tensors import CheckpointTensors

    return sum(map(prod, CheckpointTensors(folder).shapes.values()))
