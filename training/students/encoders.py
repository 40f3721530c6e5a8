"""Where a student's encoder starts, and an encoder that is all of a student."""

import inspect
import logging
from pathlib import Path

import torch
from transformers import AutoImageProcessor

from ... import HawaiiVisionConfig, HawaiiVisionModel  # from the root, which registers the Auto classes
from ...files.atomic import read_json
from ...files.run_contents import FACTS_FILE, STAGE_FILE
from ...files.sources import check_source
from ...files.user_error import UserError
from ...modeling_hawaii.conversion.checkpoint_tensors import CheckpointTensors, find_file
from ...modeling_hawaii.conversion.clip import ADAPTER_FIELDS, convert_clip
from ...modeling_hawaii.conversion.tensor_targets import TensorTarget, build_empty, fill_model, match_tensors
from ...processing.encoder_processor import EncoderProcessor, load_image_processor
from ..recipes.arguments import DataArguments, ModelArguments


logger = logging.getLogger(__name__)


def _read(source: str | Path, file: str) -> dict:
    """A JSON file of a checkpoint, a folder or a hub id; empty where it has none."""
    path = find_file(source, file)
    return {} if path is None else read_json(path)


def holds_encoder(source: str | Path) -> bool:
    """Whether a checkpoint, a folder or a hub id, is a HAWAII's encoder without a language model."""
    return _read(source, "config.json").get("model_type") == HawaiiVisionConfig.model_type


def continue_config(config: HawaiiVisionConfig, source: str, given: dict, fields: dict) -> HawaiiVisionConfig:
    """
    The configuration of a student that starts from a HAWAII's encoder: all is as it was there, and adapters stay. Only
    where it has none, there are those of a student that starts from a CLIP.

    Args:
        config (`HawaiiVisionConfig`):
            The encoder's.
        source (`str`):
            Its folder or hub id, for the error.
        given (`dict`):
            The recipe's `vision_config`.
        fields (`dict`):
            The same, and what the objective decides, see [`vision_fields`].

    Raises:
        ValueError: the recipe's `vision_config` says something else of the encoder.
    """
    names = [name for name in inspect.signature(HawaiiVisionConfig.__init__).parameters if name in vars(config)]
    own = {name: getattr(config, name) for name in names}
    decided = dict(own)
    if not own["num_teacher_adapters"] + own["num_general_adapters"]:
        own |= {name: value for name, value in fields.items() if name in ADAPTER_FIELDS}
        decided = {name: value for name, value in decided.items() if name not in ADAPTER_FIELDS}
    for name, value in given.items():
        if decided.get(name, value) != value:
            raise UserError(
                f"{name} is {value!r} in the recipe's vision_config and {decided[name]!r} in the encoder {source} "
                "that it starts from; leave it out of vision_config, or name another vision_tower."
            )
    return HawaiiVisionConfig(**own)


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
    The encoder of a fresh student.

    Args:
        model_args (`ModelArguments`):
            Names its checkpoint or its sizes.
        fields (`dict`):
            What the recipe and its objective decide of it, see [`vision_fields`].
        dtype (`torch.dtype`):
            Of the weights.

    Raises:
        ValueError: the recipe names neither, the checkpoint cannot be taken over, or the recipe contradicts it.
    """
    source = model_args.vision_tower
    if source is None:
        if model_args.vision_config is None:
            raise UserError("The recipe names neither a vision_tower nor a vision_config.")
        return HawaiiVisionModel(HawaiiVisionConfig(**fields)).to(dtype)
    check_source("vision_tower", source)
    if holds_encoder(source):
        return _continue_encoder(source, model_args.vision_config or {}, fields, dtype)
    return convert_clip(source, dtype=dtype, **fields).model


def build_encoder(
    model_args: ModelArguments, data_args: DataArguments, fields: dict
) -> tuple[HawaiiVisionModel, EncoderProcessor]:
    """A fresh student that is an encoder alone, and its processor; arguments as for [`build_vision_tower`]."""
    dtype = getattr(torch, model_args.dtype)
    encoder = build_vision_tower(model_args, fields, dtype)
    encoder.config.dtype = dtype
    original = load_image_processor(model_args.vision_tower)
    return encoder, EncoderProcessor(original, encoder.config, data_args.image_aspect_ratio)


def load_encoder(
    folder: str | Path, dtype: torch.dtype | str, image_aspect_ratio: str | None = None
) -> tuple[HawaiiVisionModel, EncoderProcessor]:
    """
    An encoder that was saved, and its processor.

    Args:
        folder (`str` or `Path`):
            Where.
        dtype (`torch.dtype` or `str`):
            Of the weights; `"auto"` for their own.
        image_aspect_ratio (`str`, *optional*):
            How an image becomes a square; as it did if not given.
    """
    encoder = HawaiiVisionModel.from_pretrained(folder, dtype=dtype)
    saved = AutoImageProcessor.from_pretrained(folder)
    own = "pad" if getattr(saved, "do_pad", False) else "crop"  # CLIP's does not know of padding
    return encoder, EncoderProcessor(saved, encoder.config, image_aspect_ratio or own)


def warn_of_other_teachers(source: str | None, names: list[str]) -> None:
    """
    Says so where a student starts from an encoder whose adapters were taught by others, or in another order: the
    n-th adapter goes on with the n-th teacher.

    Args:
        source (`str`, *optional*):
            The recipe's `vision_tower`.
        names (`list[str]`):
            The teachers that each teach an adapter of their own.
    """
    if source is None or not holds_encoder(source):
        return
    if not HawaiiVisionConfig.from_pretrained(source).num_teacher_adapters:
        return
    stages = list(_read(source, FACTS_FILE).get("stages", {}).values())
    last = stages[-1] if stages else _read(source, STAGE_FILE)  # a stage's own folder, or somebody else's
    taught = list(last.get("teachers", []))
    if taught and taught != names:
        logger.warning(
            "The adapters of %s were taught by %s, in this order, and go on with %s.",
            source,
            ", ".join(taught),
            ", ".join(names),
        )
