"""Converts other models' checkpoints to HAWAII folders, with their processor and the code that they need."""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoProcessor

from ... import HawaiiProcessor  # from the root, which registers the Auto classes
from ...configuration.configuration_hawaii import check_choice
from ...files.atomic import atomic_folder
from ...files.user_error import UserError, explain_errors
from ...modeling_hawaii.conversion.checkpoint_tensors import CheckpointTensors
from ...modeling_hawaii.conversion.clip import NAFLEX_TYPES, convert_clip, load_vision_config
from ...modeling_hawaii.conversion.llava import convert_llava
from ...modeling_hawaii.conversion.llava_checkpoint import LlavaCheckpoint, read_llava
from ...modeling_hawaii.conversion.move_kd import convert_move_kd
from ...modeling_hawaii.conversion.tensor_targets import Conversion
from ...modeling_hawaii.conversion.vocabulary import grow_vocabulary
from ...processing.chat_templates import adapt_chat_template, load_chat_template
from ...processing.encoder_processor import load_image_processor
from ..teachers.config import DTYPES
from .processor import square_image_processor, tile_image_processor
from .tokenizer import default_chat_template, read_tokenizer


UNUSED_FILE = "unused_tensors.txt"
# Bounds the memory of older versions of safetensors, which copy a file's tensors before writing them.
LARGEST_FILE = 5 * 10**9


def _dtype(name: str | None) -> torch.dtype | None:
    if name is None:
        return None
    with explain_errors():
        check_choice("dtype", name, DTYPES)
    return getattr(torch, name)


def _new_folder(folder: str) -> Path:
    """Returns the absolute path of a folder; raises `UserError` if it has files, which would be replaced."""
    path = Path(folder).resolve()
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise UserError(f"{folder} already has files: name a new folder.")
    return path


def _llava_image_processor(source: LlavaCheckpoint):
    """Image processor for squares or, of a LLaVA-NeXT, for tiles; errors as for [`build_llava_processor`]."""
    original, pinpoints = load_image_processor(source.vision_tower or source.checkpoint), source.image_grid_pinpoints
    if pinpoints is None:
        return square_image_processor(original, source.vision_config)
    if source.vision_tower is None:
        theirs = getattr(original, "image_grid_pinpoints", None)
        if theirs != pinpoints:
            raise UserError(
                f"{source.checkpoint} has image_grid_pinpoints {pinpoints} in its config.json but {theirs} in its "
                "image processor's file, such as preprocessor_config.json: set the list of its training in both."
            )
    with explain_errors(f"No student can be built from the configuration of {source.checkpoint}"):
        return tile_image_processor(original, source.vision_config, pinpoints)


def build_llava_processor(source: LlavaCheckpoint) -> HawaiiProcessor:
    """
    Creates the processor for a converted LLaVA: its tokenizer with a token for images, its normalisation, its chat
    template (Vicuna's if it has none), and its tiles or its `image_aspect_ratio`. transformers' format does not record
    how images became squares: they are padded, as in LLaVA-1.5.

    Args:
        source (`LlavaCheckpoint`):
            Names the folders of the tokenizer and of the encoder's image processor.

    Raises:
        UserError: one of them is missing or damaged, a student cannot use the tokenizer or the tiles, or the image
            processor and the model of a LLaVA-NeXT disagree about the tiles.
    """
    image_processor = _llava_image_processor(source)
    tokenizer = read_tokenizer(source.checkpoint)
    template, image_aspect_ratio = default_chat_template(tokenizer), "pad"
    if source.vision_tower is None:
        with explain_errors(f"The processor of {source.checkpoint} could not be loaded"):
            template = (
                AutoProcessor.from_pretrained(source.checkpoint, trust_remote_code=False).chat_template or template
            )
    elif source.values.get("image_aspect_ratio") not in ("pad", "anyres"):
        image_aspect_ratio = "crop"  # LLaVA's "square"
    if template is None:
        template = load_chat_template("vicuna_v1")
    return HawaiiProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=source.vision_config.patch_size,
        chat_template=adapt_chat_template(template, **tokenizer.special_tokens_map),
        image_aspect_ratio=image_aspect_ratio,
    )


def group_names(names: list[str]) -> dict[str, int]:
    """Counts tensors by module; all layers of a stack are counted together."""
    groups = Counter()
    for name in names:
        stack = re.match(r"(.*?\.)\d+\.", name)
        groups[f"{stack[1]}*" if stack else name.rpartition(".")[0] or name] += 1
    return dict(groups)


def _save(checkpoint: str, folder: Path, conversion: Conversion, processor) -> None:
    """Writes the folder, which appears only when it is complete, and prints a summary."""
    model, unused = conversion
    largest_file = min(LARGEST_FILE, CheckpointTensors(checkpoint).largest_file)
    with atomic_folder(folder) as incomplete:
        model.save_pretrained(incomplete, max_shard_size=largest_file)
        processor.save_pretrained(incomplete)
        if unused:
            (incomplete / UNUSED_FILE).write_text("\n".join(unused) + "\n", encoding="utf-8")
    print(f"{model.num_parameters():,} parameters, {str(model.dtype).removeprefix('torch.')}: {folder}")
    if unused:
        print(f"{len(unused)} tensors of {checkpoint} are not used, all listed in {UNUSED_FILE}:")
        for name, count in group_names(unused).items():
            print(f"  {count:5}  {name}")


def save_clip(checkpoint: str, folder: str, vision_feature_layer: int = -2, dtype: str | None = None) -> None:
    """
    Writes the encoder of a CLIP or SigLIP as a [`HawaiiVisionModel`] without adapters, with its image processor.

    Args:
        checkpoint (`str`):
            As for [`convert_clip`].
        folder (`str`):
            New folder to write.
        vision_feature_layer (`int`, *optional*, defaults to -2):
            Index of the `hidden_states` that the encoder outputs; later layers are dropped.
        dtype (`str`, *optional*):
            `float32`, `bfloat16` or `float16`; the checkpoint's if not given.

    Raises:
        UserError: the folder has files already, or the checkpoint cannot be converted.
    """
    path, weights_dtype = _new_folder(folder), _dtype(dtype)
    config = load_vision_config(checkpoint)
    image_processor = load_image_processor(checkpoint)
    conversion = convert_clip(
        checkpoint, vision_feature_layer, weights_dtype, num_teacher_adapters=0, num_general_adapters=0
    )
    if config.model_type in NAFLEX_TYPES:  # the original splits images of any aspect ratio into patches
        image_processor = square_image_processor(image_processor, conversion.model.config)
    _save(checkpoint, path, conversion, image_processor)


def _save_with_processor(converter: Callable[..., Conversion], checkpoint, folder, vision_tower, dtype) -> None:
    # Checks that need no weights come first: weights take minutes.
    path, weights_dtype = _new_folder(folder), _dtype(dtype)
    processor = build_llava_processor(read_llava(checkpoint, vision_tower))
    conversion = converter(checkpoint, vision_tower, weights_dtype)
    grow_vocabulary(conversion.model, len(processor.tokenizer))
    conversion.model.config.image_token_index = processor.image_token_id
    _save(checkpoint, path, conversion, processor)


def save_llava(checkpoint: str, folder: str, vision_tower: str | None = None, dtype: str | None = None) -> None:
    """
    Writes a LLaVA or a LLaVA-NeXT as a HAWAII without adapters, with its processor; it gives the same answers.

    Args:
        checkpoint, vision_tower:
            As for [`convert_llava`].
        folder (`str`):
            New folder to write.
        dtype (`str`, *optional*):
            `float32`, `bfloat16` or `float16`; the checkpoint's if not given.

    Raises:
        UserError: the folder has files already, or the checkpoint cannot be converted.
    """
    _save_with_processor(convert_llava, checkpoint, folder, vision_tower, dtype)


def save_move_kd(checkpoint: str, folder: str, vision_tower: str | None = None, dtype: str | None = None) -> None:
    """
    Writes MoVE-KD's released weights as a HAWAII whose general adapters are MoVE-KD's, with its processor.
    Arguments and errors as for [`save_llava`].
    """
    _save_with_processor(convert_move_kd, checkpoint, folder, vision_tower, dtype)
