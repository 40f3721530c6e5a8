"""Putting a student together from an encoder and a language model, each pretrained or from scratch."""

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPImageProcessorPil,
    PreTrainedTokenizerBase,
)

from ..configuration.configuration_hawaii import HawaiiConfig, HawaiiVisionConfig
from ..modeling_hawaii.convert_clip import convert_clip
from ..modeling_hawaii.modeling_hawaii import HawaiiForConditionalGeneration
from ..modeling_hawaii.vision_hawaii import HawaiiVisionModel
from ..processing.chat_templates import load_chat_template
from ..processing.processing_hawaii import IMAGE_TOKEN, HawaiiProcessor
from .arguments import DataArguments, ModelArguments
from .sources import check_source


def load_tokenizer(model_args: ModelArguments) -> PreTrainedTokenizerBase:
    """
    The recipe's tokenizer, with a token for images.

    Raises:
        ValueError: the recipe names none, or one that cannot do what training needs.
    """
    source = model_args.tokenizer or model_args.language_model
    if source is None:
        raise ValueError("The recipe names no tokenizer and no language_model that would bring one.")
    check_source("tokenizer", source, "tokenizer_config.json")
    tokenizer = AutoTokenizer.from_pretrained(source)
    if not tokenizer.is_fast:
        raise ValueError(
            f"The tokenizer {source} ({type(tokenizer).__name__}) is written in Python: it does not tell where in the "
            "text its tokens stand, and that is how answers are found. Name one that has a tokenizer.json."
        )
    if tokenizer.pad_token is None and tokenizer.eos_token is None:
        raise ValueError(
            f"The tokenizer {source} has neither a padding token nor an end token, so batches cannot be padded; set "
            "pad_token or eos_token in its tokenizer_config.json."
        )
    # Beside each other, as the patches of an image are: a plain word of the vocabulary would be split or joined.
    ids = tokenizer(IMAGE_TOKEN * 2, add_special_tokens=False)["input_ids"]
    if IMAGE_TOKEN not in tokenizer.get_vocab() or ids != [tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)] * 2:
        tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    return tokenizer


def adapt_processor(
    processor: HawaiiProcessor, model_args: ModelArguments, data_args: DataArguments
) -> HawaiiProcessor:
    """Gives a processor the chat template and the squaring of a stage."""
    processor.image_aspect_ratio = data_args.image_aspect_ratio
    if data_args.chat_template is not None:
        processor.chat_template = load_chat_template(data_args.chat_template)
    else:
        # The tokenizer of a saved stage has taken over that stage's template: only the recipe's has its own.
        processor.chat_template = load_tokenizer(model_args).chat_template
    if processor.chat_template is None:
        raise ValueError(
            "The tokenizer has no chat template of its own; name one with chat_template, such as vicuna_v1."
        )
    return processor


def build_processor(
    model_args: ModelArguments,
    data_args: DataArguments,
    vision_config: HawaiiVisionConfig,
    tokenizer: PreTrainedTokenizerBase,
) -> HawaiiProcessor:
    """The processor that fits the encoder, with the checkpoint's own normalisation where there is a checkpoint."""
    size = {"height": vision_config.image_size, "width": vision_config.image_size}
    normalisation = {}
    if model_args.vision_tower is not None:
        original = AutoImageProcessor.from_pretrained(model_args.vision_tower)
        normalisation = {"image_mean": original.image_mean, "image_std": original.image_std}
    processor = HawaiiProcessor(
        image_processor=CLIPImageProcessorPil(size=size, crop_size=size, **normalisation),
        tokenizer=tokenizer,
        patch_size=vision_config.patch_size,
    )
    return adapt_processor(processor, model_args, data_args)


def _build_vision_tower(model_args: ModelArguments, num_teachers: int) -> HawaiiVisionModel:
    fields = {**(model_args.vision_config or {}), "num_teacher_adapters": num_teachers}
    if model_args.vision_tower is not None:
        check_source("vision_tower", model_args.vision_tower)
        return convert_clip(model_args.vision_tower, **fields)
    if model_args.vision_config is None:
        raise ValueError("The recipe names neither a vision_tower nor a vision_config.")
    return HawaiiVisionModel(HawaiiVisionConfig(**fields))


def _build_language_model(model_args: ModelArguments, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype):
    # The type is given at the start: `to` would round the buffers of rotary embeddings, which loading does not.
    if model_args.language_model is not None:
        check_source("language_model", model_args.language_model)
        model = AutoModelForCausalLM.from_pretrained(model_args.language_model, dtype=dtype)
        if len(tokenizer) > model.get_input_embeddings().num_embeddings:
            model.resize_token_embeddings(len(tokenizer))
        return model
    if model_args.text_config is None:
        raise ValueError("The recipe names neither a language_model nor a text_config.")
    fields = {**model_args.text_config}
    special = ("pad_token_id", "bos_token_id", "eos_token_id")
    fields |= {"vocab_size": len(tokenizer)} | {name: getattr(tokenizer, name) for name in special}
    model_type = fields.pop("model_type", "llama")
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **fields), dtype=dtype)


@torch.no_grad()
def _check_head(language_model) -> None:
    """Refuses a head with a bias, a scale or a cap: the student's is a matrix alone, and would lose it in silence."""
    language_model.eval()
    input_ids = torch.tensor([[0, 1]])
    hidden_states = language_model.base_model(input_ids, use_cache=False).last_hidden_state
    expected = language_model(input_ids, use_cache=False).logits
    head = language_model.get_output_embeddings()
    scores = nn.functional.linear(hidden_states, head.weight)
    # In a fresh model a bias is zero, and a cap so far off that it cannot be seen: those are asked for by name.
    has_more = head.bias is not None or getattr(language_model.config, "final_logit_softcapping", None)
    if has_more or not torch.allclose(scores.float(), expected.float(), rtol=1e-3, atol=1e-3):
        raise ValueError(
            f"The head of {type(language_model).__name__} does more than multiply by one matrix (it adds a bias, or "
            "scales or caps its scores), which a HAWAII's does not; take another language model."
        )


def build_student(
    model_args: ModelArguments, data_args: DataArguments, num_teachers: int
) -> tuple[HawaiiForConditionalGeneration, HawaiiProcessor]:
    """
    A fresh student and its processor.

    Args:
        model_args (`ModelArguments`):
            Names the encoder and the language model.
        data_args (`DataArguments`):
            Names the chat template and how an image becomes a square.
        num_teachers (`int`):
            Teacher-specific adapters of each layer.

    Raises:
        ValueError: a part is named neither by checkpoint nor by configuration, no tokenizer is, or the language
            model's head is more than one matrix.
    """
    dtype = getattr(torch, model_args.dtype)
    tokenizer = load_tokenizer(model_args)
    vision_tower = _build_vision_tower(model_args, num_teachers).to(dtype)
    language_model = _build_language_model(model_args, tokenizer, dtype)
    _check_head(language_model)
    config = HawaiiConfig(
        vision_config=vision_tower.config,
        text_config=language_model.config,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
    )
    with torch.device("meta"):
        student = HawaiiForConditionalGeneration(config)
    # The parts take the places of empty ones, so that no weight exists twice.
    student.model.vision_tower = vision_tower
    student.model.language_model = language_model.base_model
    student.set_output_embeddings(language_model.get_output_embeddings())
    projector = student.model.multi_modal_projector.to_empty(device="cpu").to(dtype)
    for module in projector.modules():
        if isinstance(module, nn.Linear):
            module.reset_parameters()
    student.generation_config = language_model.generation_config
    student.config.dtype = dtype
    return student, build_processor(model_args, data_args, vision_tower.config, tokenizer)


def _part_of(name: str) -> str:
    if name.startswith("model.multi_modal_projector."):
        return "projector"
    if not name.startswith("model.vision_tower."):
        return "language_model"
    if ".lora_" in name:
        return "adapters"
    return "routers" if ".routing." in name else "vision_tower"


def set_trainable(student: HawaiiForConditionalGeneration, trainable: list[str]) -> None:
    """Lets the named parts of a student learn (see [`HawaiiTrainingArguments`]) and freezes the others."""
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(_part_of(name) in trainable)
