"""Builds a student from an encoder and a language model, pretrained or with random weights, or from a LLaVA."""

from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from ...configuration.configuration_hawaii import HawaiiConfig
from ...configuration.tiles_hawaii import check_grid_pinpoints
from ...files.manifest import check_manifest
from ...files.model_folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS, JSON_FILES, check_json_files, open_tensors
from ...files.run_contents import BASE_FOLDER
from ...files.user_error import UserError
from ...modeling_hawaii.conversion.llava import convert_llava
from ...modeling_hawaii.conversion.saved_model import check_saved_model
from ...modeling_hawaii.conversion.vocabulary import grow_vocabulary
from ...modeling_hawaii.modeling_hawaii import HawaiiForConditionalGeneration
from ...modeling_hawaii.vision_hawaii import HawaiiVisionModel
from ...processing.encoder_processor import EncoderProcessor
from ...processing.processing_hawaii import IMAGE_TOKEN, HawaiiProcessor
from ..data.conversations import tokenize_conversation
from ..objectives.encoder_passes import Student
from ..recipes.arguments import DataArguments, ModelArguments
from ..recipes.objectives import OBJECTIVES
from ..sources.record import Message
from .encoders import build_encoder, build_vision_tower, holds_encoder, load_encoder
from .language_models import build_language_model
from .processor import adapt_processor, build_processor
from .tokenizer import load_tokenizer


def vision_fields(model_args: ModelArguments, num_teachers: int, objective: str = "hawaii") -> dict:
    """Returns the encoder's configuration fields from the recipe and from its objective."""
    objective_class = OBJECTIVES[objective]
    required = objective_class.vision_fields(num_teachers)
    given = model_args.vision_config or {}
    return {**required, **given} if objective_class.has_adapters else {**given, **required}


def stop_where_answers_end(student: HawaiiForConditionalGeneration, processor: HawaiiProcessor) -> None:
    """
    Adds the tokens with which the chat template ends answers to the generation's end tokens. A language model that was
    trained on plain text has another end token.

    Raises:
        UserError: the start or the end of the template's answers cannot be found (see [`tokenize_conversation`]).
    """
    # Two turns: some templates end the last answer differently from those before it.
    messages = [Message(role, "?") for role in ("user", "assistant", "user", "assistant")]
    end_ids = tokenize_conversation(messages, processor).end_ids
    known = student.generation_config.eos_token_id
    known = known if isinstance(known, list) else [] if known is None else [known]
    if not end_ids <= set(known):
        student.generation_config.eos_token_id = [*known, *sorted(end_ids - set(known))]


def join_parts(
    vision_tower: HawaiiVisionModel, language_model: PreTrainedModel, dtype: torch.dtype
) -> HawaiiForConditionalGeneration:
    """Connects an encoder and a language model with a new projector."""
    head = language_model.get_output_embeddings()
    config = HawaiiConfig(
        vision_config=vision_tower.config, text_config=language_model.config, head_bias=head.bias is not None
    )
    with torch.device("meta"):
        student = HawaiiForConditionalGeneration(config)
    # The parts replace modules on the meta device, so no weight exists twice.
    student.model.vision_tower = vision_tower
    student.model.language_model = language_model.base_model
    student.set_output_embeddings(head)
    projector = student.model.multi_modal_projector.to_empty(device="cpu").to(dtype)
    for module in projector.modules():
        if isinstance(module, nn.Linear):
            module.reset_parameters()
    student.generation_config = language_model.generation_config
    return student


def set_tiles(student: HawaiiForConditionalGeneration, image_grid_pinpoints: list[list[int]] | None) -> None:
    """
    Makes a student read images cut into tiles, or without `image_grid_pinpoints` images of one square each. The
    newline, which only tiles need, starts as in LLaVA-NeXT.

    Raises:
        ValueError: the pinpoints are not multiples of the encoder's image size.
    """
    config, model = student.config, student.model
    pinpoints = check_grid_pinpoints(image_grid_pinpoints, config.vision_config.image_size)
    if (pinpoints is None) != (config.image_grid_pinpoints is None):
        if pinpoints is None:
            del model.image_newline
        else:
            like = model.multi_modal_projector.linear_2.weight
            width = config.text_config.hidden_size
            newline = torch.empty(width, dtype=like.dtype, device=like.device).normal_(std=width**-0.5)
            model.image_newline = nn.Parameter(newline)
    config.image_grid_pinpoints = pinpoints


def build_student(
    model_args: ModelArguments, data_args: DataArguments, num_teachers: int, objective: str = "hawaii"
) -> tuple[Student, HawaiiProcessor | EncoderProcessor]:
    """
    Builds the student of a recipe's first stage and its processor.

    Args:
        model_args (`ModelArguments`):
            Names the encoder and the language model, or a LLaVA, or the encoder alone.
        data_args (`DataArguments`):
            Names the chat template and how an image becomes a square, or tiles.
        num_teachers (`int`):
            Number of teachers.
        objective (`str`, *optional*, defaults to `"hawaii"`):
            Name of the objective, which sets the adapters that the recipe does not.

    Raises:
        UserError: the recipe names a part neither by checkpoint nor by configuration, names no tokenizer, names a
            language model whose head or encoder a student cannot have, or names an unsuitable chat template.
    """
    fields = vision_fields(model_args, num_teachers, objective)
    if model_args.is_encoder_alone:
        return build_encoder(model_args, data_args, fields)
    dtype = getattr(torch, model_args.dtype)
    tokenizer = load_tokenizer(model_args)
    if model_args.llava is not None:
        student = convert_llava(model_args.llava, dtype=dtype, **fields).model
        grow_vocabulary(student, len(tokenizer))
    else:
        vision_tower = build_vision_tower(model_args, fields, dtype)
        student = join_parts(vision_tower, build_language_model(model_args, tokenizer, dtype), dtype)
    student.config.image_token_index = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    student.config.dtype = dtype
    # Many checkpoints still have the value of their own training, false, which makes every answer slow.
    student.config.text_config.use_cache = student.generation_config.use_cache = True
    pinpoints = student.config.image_grid_pinpoints
    processor = build_processor(model_args, data_args, student.config.vision_config, tokenizer, pinpoints)
    set_tiles(student, processor.image_grid_pinpoints)
    stop_where_answers_end(student, processor)
    return student, processor


def load_student(folder: Path, dtype: torch.dtype | str) -> HawaiiForConditionalGeneration:
    """
    Loads the model of a finished stage. A LoRA that was saved separately is merged.

    Args:
        folder (`Path`):
            Model folder of the stage.
        dtype (`torch.dtype` or `str`):
            Precision of the weights; `"auto"` for the saved one.

    Raises:
        UserError: a file of the stage, or of the base of its LoRA, is missing or damaged.
    """
    if not (folder / ADAPTER_CONFIG).is_file():
        check_saved_model(folder)
        return HawaiiForConditionalGeneration.from_pretrained(folder, dtype=dtype)
    from .lora import load_merged

    check_json_files(folder, (ADAPTER_CONFIG, *JSON_FILES))
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise UserError(f"{folder} has no {ADAPTER_WEIGHTS}. Restore the file.")
    with open_tensors(folder / ADAPTER_WEIGHTS):
        pass
    base = folder.resolve().parent / BASE_FOLDER  # valid even if the run was moved
    try:
        check_manifest(base)
    except UserError as error:
        raise UserError(f"{error}. Restore it from a copy: {folder} has only the adapters of this base.") from error
    return load_merged(base, folder, dtype)


def continue_student(
    folder: Path, model_args: ModelArguments, data_args: DataArguments
) -> tuple[Student, HawaiiProcessor | EncoderProcessor]:
    """
    Loads the student of a finished stage, and its processor, with the next stage's chat template, `image_aspect_ratio`
    and tiles.

    Raises:
        UserError: a file of the stage is missing or damaged, or [`adapt_processor`] refuses the chat template.
    """
    dtype = getattr(torch, model_args.dtype)
    if holds_encoder(folder):
        check_saved_model(folder)
        return load_encoder(folder, dtype, data_args.image_aspect_ratio)
    student = load_student(folder, dtype)
    saved = HawaiiProcessor.from_pretrained(folder, trust_remote_code=model_args.trust_remote_code)
    processor = adapt_processor(saved, model_args, data_args)
    set_tiles(student, processor.image_grid_pinpoints)
    stop_where_answers_end(student, processor)
    return student, processor
