"""Putting a student together from an encoder and a language model, pretrained or from scratch, or from a LLaVA."""

from pathlib import Path

import torch
from torch import nn
from transformers import (
    AutoTokenizer,
    CLIPImageProcessorPil,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ...configuration.configuration_hawaii import HawaiiConfig, HawaiiVisionConfig
from ...files.sources import check_source
from ...files.user_error import UserError
from ...modeling_hawaii.conversion.llava import convert_llava
from ...modeling_hawaii.conversion.llava_checkpoint import read_llava
from ...modeling_hawaii.conversion.vocabulary import grow_vocabulary
from ...modeling_hawaii.modeling_hawaii import HawaiiForConditionalGeneration
from ...modeling_hawaii.vision_hawaii import HawaiiVisionModel
from ...processing.chat_templates import adapt_chat_template, load_chat_template
from ...processing.encoder_processor import EncoderProcessor, kernel_and_colors, load_image_processor
from ...processing.processing_hawaii import IMAGE_TOKEN, HawaiiProcessor
from ..data.conversations import tokenize_conversation
from ..data.record import Message
from ..objectives.encoder_passes import Student
from ..recipes.arguments import DataArguments, ModelArguments
from ..recipes.objectives import OBJECTIVES
from .encoders import build_encoder, build_vision_tower, holds_encoder, load_encoder
from .language_models import build_language_model


def read_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """
    A tokenizer with a token for images.

    Args:
        source (`str`):
            Folder or hub id.

    Raises:
        ValueError: it cannot be read, or cannot do what training needs.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise UserError(f"The tokenizer {source} cannot be read: {error}") from error
    if not tokenizer.is_fast:
        raise UserError(
            f"The tokenizer {source} ({type(tokenizer).__name__}) is written in Python: it does not tell where in the "
            "text its tokens stand, and that is how answers are found. Name one that has a tokenizer.json."
        )
    if tokenizer.pad_token is None and tokenizer.eos_token is None:
        raise UserError(
            f"The tokenizer {source} has neither a padding token nor an end token, so batches cannot be padded; set "
            "pad_token or eos_token in its tokenizer_config.json."
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # batches are padded when the model is used, too
    # Beside each other, as the patches of an image are: a plain word of the vocabulary would be split or joined.
    ids = tokenizer(IMAGE_TOKEN * 2, add_special_tokens=False)["input_ids"]
    if IMAGE_TOKEN not in tokenizer.get_vocab() or ids != [tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)] * 2:
        tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]}, replace_extra_special_tokens=False)
    return tokenizer


def load_tokenizer(model_args: ModelArguments) -> PreTrainedTokenizerBase:
    """
    The recipe's tokenizer, with a token for images.

    Raises:
        ValueError: the recipe names none, or one that cannot be read or cannot do what training needs.
    """
    source = model_args.tokenizer or model_args.language_model or model_args.llava
    if source is None:
        raise UserError("The recipe names no tokenizer and no language_model that would bring one.")
    check_source("tokenizer", source, "tokenizer_config.json")
    return read_tokenizer(source)


def own_chat_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The chat template that a tokenizer brings; the default of those that have one for each use."""
    template = tokenizer.chat_template
    return template.get("default") if isinstance(template, dict) else template


def adapt_processor(
    processor: HawaiiProcessor, model_args: ModelArguments, data_args: DataArguments
) -> HawaiiProcessor:
    """
    Gives a processor the chat template and the squaring of a stage.

    Raises:
        ValueError: there is no such template, or it does not show images and text (see [`adapt_chat_template`]).
    """
    processor.image_aspect_ratio = data_args.image_aspect_ratio
    if data_args.chat_template is not None:
        template = load_chat_template(data_args.chat_template)
    else:
        # The tokenizer of a saved stage has taken over that stage's template: only the recipe's has its own.
        template = own_chat_template(load_tokenizer(model_args))
    if template is None:
        raise UserError(
            "The tokenizer has no chat template of its own; name one with chat_template, such as vicuna_v1."
        )
    processor.chat_template = adapt_chat_template(template, **processor.tokenizer.special_tokens_map)
    processor.tokenizer.chat_template = processor.chat_template  # and no others, which would be saved beside it
    return processor


def square_image_processor(original, vision_config: HawaiiVisionConfig) -> CLIPImageProcessorPil:
    """Makes an encoder's squares, with the kernel and the scale of colours of a checkpoint's image processor."""
    size = {"height": vision_config.image_size, "width": vision_config.image_size}
    return CLIPImageProcessorPil(size=size, crop_size=size, **kernel_and_colors(original))


def build_processor(
    model_args: ModelArguments,
    data_args: DataArguments,
    vision_config: HawaiiVisionConfig,
    tokenizer: PreTrainedTokenizerBase,
) -> HawaiiProcessor:
    """The processor that fits the encoder, which prepares squares as the checkpoint's own where there is one."""
    source = model_args.vision_tower
    if model_args.llava is not None:
        # LLaVA's own form names the encoder's checkpoint, which has the image processor.
        source = read_llava(model_args.llava, vision_tower=None).vision_tower or model_args.llava
    processor = HawaiiProcessor(
        image_processor=square_image_processor(load_image_processor(source), vision_config),
        tokenizer=tokenizer,
        patch_size=vision_config.patch_size,
    )
    return adapt_processor(processor, model_args, data_args)


def vision_fields(model_args: ModelArguments, num_teachers: int, objective: str = "hawaii") -> dict:
    """What a recipe decides of the encoder: what it says, over what its objective does."""
    kind = OBJECTIVES[objective]
    own = kind.vision_fields(num_teachers)
    given = model_args.vision_config or {}
    return {**own, **given} if kind.has_adapters else {**given, **own}


def stop_where_answers_end(student: HawaiiForConditionalGeneration, processor: HawaiiProcessor) -> None:
    """
    Makes generation stop at the tokens that the processor's chat template puts behind answers: a language model that
    was trained on text alone knows another end.

    Raises:
        ValueError: the template does not show where answers begin and end (see [`tokenize_conversation`]).
    """
    # Some templates end the last answer in another way than those before it.
    messages = [Message(role, "?") for role in ("user", "assistant", "user", "assistant")]
    end_ids = tokenize_conversation(messages, processor).end_ids
    known = student.generation_config.eos_token_id
    known = known if isinstance(known, list) else [] if known is None else [known]
    if not end_ids <= set(known):
        student.generation_config.eos_token_id = [*known, *sorted(end_ids - set(known))]


def _join(
    vision_tower: HawaiiVisionModel, language_model: PreTrainedModel, dtype: torch.dtype
) -> HawaiiForConditionalGeneration:
    head = language_model.get_output_embeddings()
    config = HawaiiConfig(
        vision_config=vision_tower.config, text_config=language_model.config, head_bias=head.bias is not None
    )
    with torch.device("meta"):
        student = HawaiiForConditionalGeneration(config)
    # The parts take the places of empty ones, so that no weight exists twice.
    student.model.vision_tower = vision_tower
    student.model.language_model = language_model.base_model
    student.set_output_embeddings(head)
    projector = student.model.multi_modal_projector.to_empty(device="cpu").to(dtype)
    for module in projector.modules():
        if isinstance(module, nn.Linear):
            module.reset_parameters()
    student.generation_config = language_model.generation_config
    return student


def build_student(
    model_args: ModelArguments, data_args: DataArguments, num_teachers: int, objective: str = "hawaii"
) -> tuple[Student, HawaiiProcessor | EncoderProcessor]:
    """
    A fresh student and its processor.

    Args:
        model_args (`ModelArguments`):
            Names the encoder and the language model, or a LLaVA; or the encoder alone.
        data_args (`DataArguments`):
            Names the chat template and how an image becomes a square.
        num_teachers (`int`):
            How many there are.
        objective (`str`, *optional*, defaults to `"hawaii"`):
            Decides which adapters there are, where the recipe does not.

    Raises:
        ValueError: a part is named neither by checkpoint nor by configuration, no tokenizer is, the language
            model has a head or an encoder that a student cannot take over, or the chat template does not fit.
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
        student = _join(vision_tower, build_language_model(model_args, tokenizer, dtype), dtype)
    student.config.image_token_index = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    student.config.dtype = dtype
    processor = build_processor(model_args, data_args, student.config.vision_config, tokenizer)
    stop_where_answers_end(student, processor)
    return student, processor


def continue_student(
    folder: Path, model_args: ModelArguments, data_args: DataArguments
) -> tuple[Student, HawaiiProcessor | EncoderProcessor]:
    """The student that a stage left, and its processor with the chat template and the squaring of the next one."""
    dtype = getattr(torch, model_args.dtype)
    if holds_encoder(folder):
        return load_encoder(folder, dtype, data_args.image_aspect_ratio)
    student = HawaiiForConditionalGeneration.from_pretrained(folder, dtype=dtype)
    processor = adapt_processor(HawaiiProcessor.from_pretrained(folder), model_args, data_args)
    stop_where_answers_end(student, processor)
    return student, processor


def part_of(name: str) -> str:
    """
    Which part a student's parameter of this name belongs to (see [`HawaiiTrainingArguments`]); a student may be an
    encoder alone.
    """
    if name.startswith("model.multi_modal_projector."):
        return "projector"
    if name.startswith(("model.language_model.", "lm_head.")):
        return "language_model"
    if ".lora_" in name:
        return "adapters"
    return "routers" if ".routing." in name else "vision_tower"


def set_trainable(student: Student, trainable: list[str]) -> None:
    """
    Lets the named parts of a student learn (see [`HawaiiTrainingArguments`]) and freezes the others.

    Raises:
        ValueError: the student is an encoder alone, and none of it would learn.
    """
    parts = {name: part_of(name) for name, _ in student.named_parameters()}
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(parts[name] in trainable)
    if isinstance(student, HawaiiVisionModel) and not set(trainable) & set(parts.values()):
        raise UserError(
            f"trainable is {trainable!r}, of which the student has nothing: it is an encoder without a language "
            f"model, and its parts are {', '.join(sorted(set(parts.values())))}."
        )
