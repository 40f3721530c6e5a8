"""Folders to start from: other checkpoints as a HAWAII, with the processor and the code that they need."""

import re
from collections import Counter
from pathlib import Path

import torch
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer

from .. import HawaiiProcessor  # from the root, which registers the Auto classes
from ..configuration.configuration_hawaii import check_choice
from ..hub_cards.folders import whole_folder
from ..modeling_hawaii.checkpoint_tensors import CheckpointTensors
from ..modeling_hawaii.conversion import Conversion
from ..modeling_hawaii.convert_clip import NAFLEX_TYPES, convert_clip, load_vision_config
from ..modeling_hawaii.convert_llava import convert_llava
from ..modeling_hawaii.convert_move_kd import convert_move_kd
from ..modeling_hawaii.llava_checkpoint import LlavaCheckpoint, read_llava
from ..modeling_hawaii.modeling_hawaii import HawaiiForConditionalGeneration
from ..processing.chat_templates import adapt_chat_template, load_chat_template
from ..processing.processing_hawaii import IMAGE_TOKEN
from .students import square_image_processor


DTYPES = ("float32", "bfloat16", "float16")
UNUSED_FILE = "unused_tensors.txt"
# Older safetensors copy a file's tensors before they write them; this bounds what that takes.
LARGEST_FILE = 5 * 10**9


def _dtype(name: str | None) -> torch.dtype | None:
    if name is None:
        return None
    check_choice("dtype", name, DTYPES)
    return getattr(torch, name)


def _check_new(folder: str) -> None:
    """Raises a `ValueError` if there is something under that name, which would be replaced."""
    if Path(folder).is_file() or (Path(folder).is_dir() and any(Path(folder).iterdir())):
        raise ValueError(f"There is something in {folder} already: name a new folder.")


def _chat_template(own: str | None, tokenizer) -> str:
    """The checkpoint's own; else the tokenizer's; else Vicuna's, which LLaVA-1.5 was trained on."""
    template = own or tokenizer.chat_template
    if template is None:
        return load_chat_template("vicuna_v1")
    return adapt_chat_template(template, **tokenizer.special_tokens_map)


def build_llava_processor(source: LlavaCheckpoint, model: HawaiiForConditionalGeneration) -> HawaiiProcessor:
    """
    The processor of a LLaVA that was converted: its tokenizer and its scale of colours, images padded to a square as
    in LLaVA-1.5. The model is told which token stands for an image.

    Args:
        source (`LlavaCheckpoint`):
            Where the tokenizer lies, and the encoder's image processor.
        model (`HawaiiForConditionalGeneration`):
            What it was converted to; its `image_token_index` becomes the tokenizer's.

    Raises:
        ValueError: the tokenizer has more tokens than the model has embeddings.
    """
    if source.vision_tower is None:
        original = AutoProcessor.from_pretrained(source.checkpoint)
        tokenizer, image_processor, template = original.tokenizer, original.image_processor, original.chat_template
    else:
        tokenizer, template = AutoTokenizer.from_pretrained(source.checkpoint), None
        image_processor = AutoImageProcessor.from_pretrained(source.vision_tower)
    if IMAGE_TOKEN not in tokenizer.get_vocab():
        tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    image_token_index = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    num_embeddings = model.get_input_embeddings().num_embeddings
    if image_token_index >= num_embeddings:
        raise ValueError(
            f"The tokenizer of {source.checkpoint} gives {IMAGE_TOKEN} the id {image_token_index}, but the model has "
            f"{num_embeddings} embeddings: one of the two is not its own."
        )
    model.config.image_token_index = image_token_index
    return HawaiiProcessor(
        image_processor=square_image_processor(image_processor, model.config.vision_config),
        tokenizer=tokenizer,
        patch_size=model.config.vision_config.patch_size,
        chat_template=_chat_template(template, tokenizer),
    )


def group_names(names: list[str]) -> dict[str, int]:
    """How many tensors there are of each kind: of all layers of a stack together, else of each module."""
    groups = Counter()
    for name in names:
        stack = re.match(r"(.*?\.)\d+\.", name)
        groups[f"{stack[1]}*" if stack else name.rpartition(".")[0] or name] += 1
    return dict(groups)


def _save(checkpoint: str, folder: str, conversion: Conversion, processor) -> None:
    """Writes a folder that appears whole, and says what is in it and what is not."""
    model, unused = conversion
    largest_file = min(LARGEST_FILE, CheckpointTensors(checkpoint).largest_file)
    with whole_folder(folder) as incomplete:
        model.save_pretrained(incomplete, max_shard_size=largest_file)
        processor.save_pretrained(incomplete)
        if unused:
            (incomplete / UNUSED_FILE).write_text("\n".join(unused) + "\n", encoding="utf-8")
    print(f"{model.num_parameters():,} parameters, {str(model.dtype).removeprefix('torch.')}: {folder}")
    if unused:
        print(f"{len(unused)} tensors of {checkpoint} have no place in it, all named in {UNUSED_FILE}:")
        for name, count in group_names(unused).items():
            print(f"  {count:5}  {name}")


def save_clip(checkpoint: str, folder: str, vision_feature_layer: int = -2, dtype: str | None = None) -> None:
    """
    Writes the encoder of a CLIP or SigLIP as a [`HawaiiVisionModel`] without adapters, with its image processor.

    Args:
        checkpoint (`str`):
            As for [`convert_clip`].
        folder (`str`):
            A new one.
        vision_feature_layer (`int`, *optional*, defaults to -2):
            Which of its `hidden_states` the encoder ends at.
        dtype (`str`, *optional*):
            `float32`, `bfloat16` or `float16`; the checkpoint's if not given.

    Raises:
        ValueError: there is something in the folder, or the checkpoint cannot be converted.
    """
    _check_new(folder)
    conversion = convert_clip(
        checkpoint, vision_feature_layer, _dtype(dtype), num_teacher_adapters=0, num_general_adapters=0
    )
    image_processor = AutoImageProcessor.from_pretrained(checkpoint)
    if load_vision_config(checkpoint).model_type in NAFLEX_TYPES:  # its own cuts images of any aspect ratio up
        image_processor = square_image_processor(image_processor, conversion.model.config)
    _save(checkpoint, folder, conversion, image_processor)


def save_llava(checkpoint: str, folder: str, vision_tower: str | None = None, dtype: str | None = None) -> None:
    """
    Writes a LLaVA as a HAWAII without adapters, with its processor: a folder that answers as the LLaVA does.

    Args:
        checkpoint, vision_tower:
            As for [`convert_llava`].
        folder (`str`):
            A new one.
        dtype (`str`, *optional*):
            `float32`, `bfloat16` or `float16`; the checkpoint's if not given.

    Raises:
        ValueError: there is something in the folder, or the checkpoint cannot be converted.
    """
    _check_new(folder)
    conversion = convert_llava(checkpoint, vision_tower, _dtype(dtype))
    processor = build_llava_processor(read_llava(checkpoint, vision_tower), conversion.model)
    _save(checkpoint, folder, conversion, processor)


def save_move_kd(checkpoint: str, folder: str, vision_tower: str | None = None, dtype: str | None = None) -> None:
    """
    Writes MoVE-KD's released weights as a HAWAII whose general adapters are MoVE-KD's, with its processor.

    Args:
        checkpoint, vision_tower:
            As for [`convert_move_kd`].
        folder (`str`):
            A new one.
        dtype (`str`, *optional*):
            `float32`, `bfloat16` or `float16`; the checkpoint's if not given.

    Raises:
        ValueError: there is something in the folder, or the checkpoint cannot be converted.
    """
    _check_new(folder)
    conversion = convert_move_kd(checkpoint, vision_tower, _dtype(dtype))
    processor = build_llava_processor(read_llava(checkpoint, vision_tower), conversion.model)
    _save(checkpoint, folder, conversion, processor)
