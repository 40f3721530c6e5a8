"""The student's encoder: pretrained, continued or with random weights, and as a student without a language model."""

import inspect
import logging
from pathlib import Path

import torch
from transformers import AutoImageProcessor

from ... import HawaiiVisionConfig, HawaiiVisionModel  # from the root, which registers the Auto classes
from ...files.atomic import read_json
from ...files.run_contents import FACTS_FILE, STAGE_FILE
from ...files.sources import check_source
from ...files.user_error import UserError, explain_errors
from ...modeling_hawaii.conversion.checkpoint_tensors import CheckpointTensors, find_file
from ...modeling_hawaii.conversion.clip import ADAPTER_FIELDS, convert_clip
from ...modeling_hawaii.conversion.tensor_targets import TensorTarget, build_empty, fill_model, match_tensors
from ...processing.encoder_processor import EncoderProcessor, load_image_processor
from ..recipes.arguments import DataArguments, ModelArguments


logger = logging.getLogger(__name__)


def _read_json(source: str | Path, file: str) -> dict:
    """Reads a JSON file of a checkpoint (folder or hub id); returns an empty dictionary if there is none."""
    path = find_file(source, file)
    return {} if path is None else read_json(path)


def holds_encoder(source: str | Path) -> bool:
    """Whether a checkpoint (folder or hub id) is a HAWAII encoder without a language model."""
    return _read_json(source, "config.json").get("model_type") == HawaiiVisionConfig.model_type


def continue_config(config: HawaiiVisionConfig, source: str, given: dict, fields: dict) -> HawaiiVisionConfig:
    """
    Returns the configuration of a student that starts from a HAWAII encoder. The encoder's configuration and adapters
    are kept; an encoder without adapters gets those of a student that starts from a CLIP.

    Args:
        config (`HawaiiVisionConfig`):
            The encoder's configuration.
        source (`str`):
            Its folder or hub id, for the error.
        given (`dict`):
            The recipe's `vision_config`.
        fields (`dict`):
            `given` merged with the objective's fields, see [`vision_fields`].

    Raises:
        UserError: the recipe's `vision_config` differs from the encoder's configuration.
    """
    names = [name for name in inspect.signature(HawaiiVisionConfig.__init__).parameters if name in vars(config)]
    values = {name: getattr(config, name) for name in names}
    fixed = dict(values)
    if not values["num_teacher_adapters"] + values["num_general_adapters"]:
        values |= {name: value for name, value in fields.items() if name in ADAPTER_FIELDS}
        fixed = {name: value for name, value in fixed.items() if name not in ADAPTER_FIELDS}
    for name, value in given.items():
        if fixed.get(name, value) != value:
            raise UserError(
                f"{name} is {value!r} in the recipe's vision_config and {fixed[name]!r} in the encoder {source} that "
                "it starts from; leave it out of vision_config, or name another vision_tower."
            )
    with explain_errors("vision_config", ValueError):
        return HawaiiVisionConfig(**values)


def _continue_encoder(source: str, given: dict, fields: dict, dtype: torch.dtype) -> HawaiiVisionModel:
    config = HawaiiVisionConfig.from_pretrained(source)
    tensors = CheckpointTensors(source)
    with torch.device("meta"):
        targets = {name: TensorTarget(name) for name in HawaiiVisionModel(config).state_dict()}
    match_tensors(tensors, targets, lambda name: False, "a HAWAII's encoder")
    model = build_empty(HawaiiVisionModel, continue_config(config, source, given, fields), dtype)
    filled = fill_model(model, [(tensors, targets)], dtype)
    assert isinstance(filled, HawaiiVisionModel)
    return filled


def build_vision_tower(model_args: ModelArguments, fields: dict, dtype: torch.dtype) -> HawaiiVisionModel:
    """
    Builds the encoder of a new student.

    Args:
        model_args (`ModelArguments`):
            Names its checkpoint or its sizes.
        fields (`dict`):
            Configuration fields from the recipe and its objective, see [`vision_fields`].
        dtype (`torch.dtype`):
            Precision of the weights.

    Raises:
        UserError: the recipe contradicts the checkpoint, or the checkpoint cannot be converted.
    """
    source = model_args.vision_tower
    if source is None:
        with explain_errors("vision_config", ValueError):
            config = HawaiiVisionConfig(**fields)
        return HawaiiVisionModel(config).to(dtype)
    check_source("vision_tower", source)
    if holds_encoder(source):
        return _continue_encoder(source, model_args.vision_config or {}, fields, dtype)
    return convert_clip(source, dtype=dtype, **fields).model


def build_encoder(
    model_args: ModelArguments, data_args: DataArguments, fields: dict
) -> tuple[HawaiiVisionModel, EncoderProcessor]:
    """Builds a student that is an encoder alone, and its processor; arguments as for [`build_vision_tower`]."""
    dtype = getattr(torch, model_args.dtype)
    encoder = build_vision_tower(model_args, fields, dtype)
    encoder.config.dtype = dtype
    original = load_image_processor(model_args.vision_tower)
    return encoder, EncoderProcessor(original, encoder.config, data_args.image_aspect_ratio)


def load_encoder(
    folder: str | Path, dtype: torch.dtype | str, image_aspect_ratio: str | None = None
) -> tuple[HawaiiVisionModel, EncoderProcessor]:
    """
    Loads a saved encoder and its processor.

    Args:
        folder (`str` or `Path`):
            Folder of the encoder.
        dtype (`torch.dtype` or `str`):
            Precision of the weights; `"auto"` for the saved one.
        image_aspect_ratio (`str`, *optional*):
            How an image becomes a square; as saved if not given.
    """
    encoder = HawaiiVisionModel.from_pretrained(folder, dtype=dtype)
    saved = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
    saved_ratio = "pad" if getattr(saved, "do_pad", False) else "crop"  # CLIP's has no `do_pad`
    return encoder, EncoderProcessor(saved, encoder.config, image_aspect_ratio or saved_ratio)


def warn_of_other_teachers(source: str | None, names: list[str]) -> None:
    """
    Logs a warning if a student starts from an encoder whose adapters learned from other teachers or in another order:
    the n-th adapter continues with the n-th teacher.

    Args:
        source (`str`, *optional*):
            The recipe's `vision_tower`.
        names (`list[str]`):
            Names of the teachers that each train an adapter.
    """
    if source is None or not holds_encoder(source):
        return
    if not HawaiiVisionConfig.from_pretrained(source).num_teacher_adapters:
        return
    stages = list(_read_json(source, FACTS_FILE).get("stages", {}).values())
    # A folder without a published folder's file is that of a stage, or of an encoder from elsewhere.
    last = stages[-1] if stages else _read_json(source, STAGE_FILE)
    previous = list(last.get("teachers", []))
    if previous and previous != names:
        logger.warning(
            "The adapters of %s learned from %s, in this order, and continue with %s.",
            source,
            ", ".join(previous),
            ", ".join(names),
        )
