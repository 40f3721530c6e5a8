"""Starts a student from a LLaVA: the same model, with nothing built that its answers do not need."""

import re
from collections.abc import Callable

import torch
from transformers import GenerationConfig, PretrainedConfig

from ...configuration.configuration_hawaii import HawaiiConfig, HawaiiVisionConfig
from ...files.user_error import UserError
from ..modeling_hawaii import HawaiiForConditionalGeneration
from .checkpoint_tensors import CheckpointTensors, find_file, read_json
from .clip import is_unneeded, make_vision_config, match_vision_tensors, vision_targets
from .llava_checkpoint import LlavaCheckpoint, read_llava
from .tensor_targets import Conversion, TensorTarget, build_empty, fill_model, match_tensors
from .vocabulary import grow_vocabulary


# Tables of positions that old versions saved and new ones compute.
COMPUTED = re.compile(r"(^|\.)rotary_emb\.inv_freq$")
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def _generation_config(checkpoint: str, text_config: PretrainedConfig) -> GenerationConfig:
    """The ids of tokens alone: LLaVA's own files hold sampling options that today's transformers refuse to save."""
    path = find_file(checkpoint, "generation_config.json")
    values = {} if path is None else read_json(path)
    return GenerationConfig(**{name: values.get(name, getattr(text_config, name, None)) for name in TOKEN_IDS})


def _make_config(source: LlavaCheckpoint, vision: HawaiiVisionConfig, has_head_bias: bool) -> HawaiiConfig:
    text, image_token_index = source.text_config, source.image_token_index
    return HawaiiConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=text.vocab_size if image_token_index is None else image_token_index,
        projector_hidden_act=source.projector_hidden_act,
        multimodal_projector_bias=source.multimodal_projector_bias,
        head_bias=has_head_bias,
    )


def _decoder_targets(model: HawaiiForConditionalGeneration) -> dict[str, TensorTarget]:
    """Where all but the encoder's tensors go, by part name."""
    modules = {
        "projector": ("model.multi_modal_projector", model.model.multi_modal_projector),
        "text": ("model.language_model", model.model.language_model),
        "head": ("lm_head", model.lm_head),
    }
    targets = {
        f"{part}.{name}": TensorTarget(f"{prefix}.{name}")
        for part, (prefix, module) in modules.items()
        for name in module.state_dict()
    }
    if model.config.tie_word_embeddings:
        del targets["head.weight"]
    return targets


def _in_model(encoder_targets: dict[str, TensorTarget]) -> dict[str, TensorTarget]:
    """Places of an encoder as those of a whole model."""
    return {name: place._replace(name=f"model.vision_tower.{place.name}") for name, place in encoder_targets.items()}


def _is_computed(part: str, model: HawaiiForConditionalGeneration) -> bool:
    """Whether a tensor of the language model or the head is one that the model makes itself."""
    if part == "head.weight":
        return model.config.tie_word_embeddings
    ignored = model.model.language_model._keys_to_ignore_on_load_unexpected or []
    return part.startswith("text.") and (
        bool(COMPUTED.search(part)) or any(re.search(pattern, part.removeprefix("text.")) for pattern in ignored)
    )


def _check_tied_head(model: HawaiiForConditionalGeneration, tensors: CheckpointTensors, name: str) -> None:
    """Refuses a head `name` that is tied and yet another matrix than the embeddings: it would be lost in silence."""
    embeddings = model.get_input_embeddings().weight
    for _, head in tensors.read([name]):
        if not torch.equal(head.type_as(embeddings), embeddings):
            raise UserError(
                f"{tensors.checkpoint} holds another {name} than its embeddings, but its config.json says that they "
                "are one; set tie_word_embeddings to false there, also in text_config, if the head is its own."
            )


def is_encoder_part_unneeded(part: str, num_hidden_layers: int) -> bool:
    """As [`is_unneeded`], of a part name."""
    return part.startswith("vision.") and is_unneeded(part.removeprefix("vision."), num_hidden_layers)


def assemble(
    source: LlavaCheckpoint,
    tensors: CheckpointTensors,
    vision: HawaiiVisionConfig,
    encoder_targets: dict[str, TensorTarget],
    is_part_unneeded: Callable[[str], bool],
    dtype: torch.dtype | None,
) -> Conversion:
    """
    Builds a model of a LLaVA's parts.

    Args:
        source (`LlavaCheckpoint`):
            What it is.
        tensors (`CheckpointTensors`):
            Its tensors.
        vision (`HawaiiVisionConfig`):
            Of the encoder to build.
        encoder_targets (`dict[str, TensorTarget]`):
            Where the encoder's tensors go, where they are among `tensors`; as [`vision_targets`].
        is_part_unneeded (`Callable`):
            Whether a tensor, by its part name, is known to have no place.
        dtype (`torch.dtype`, *optional*):
            Type of the parameters; the language model's in the checkpoint if not given.

    Returns:
        [`Conversion`]

    Raises:
        ValueError: a tensor is missing, unknown, quantized or of another shape, or a tied head is not tied.
    """
    names = {source.part_name(name): name for name in tensors.names}
    config = _make_config(source, vision, "head.bias" in names)
    dtype = dtype or tensors.main_dtype([name for part, name in names.items() if part.startswith("text.")])
    model = build_empty(HawaiiForConditionalGeneration, config, dtype)
    parts = _decoder_targets(model)
    towers = []
    if source.vision_tower is None or any(part.startswith("vision.") for part in names):
        parts |= {f"vision.{name}": place for name, place in _in_model(encoder_targets).items()}
    else:
        tower = CheckpointTensors(source.vision_tower)
        tower_targets, _ = match_vision_tensors(tower, source.vision_config, vision)
        towers = [(tower, _in_model(tower_targets))]
    # What the checkpoint lacks is called as in the model.
    targets = {names.get(part, place.name): place for part, place in parts.items()}
    unused = match_tensors(
        tensors,
        targets,
        lambda name: is_part_unneeded(source.part_name(name)) or _is_computed(source.part_name(name), model),
        "a LLaVA of its config.json",
    )
    fill_model(model, [*towers, (tensors, targets)], dtype)
    if config.tie_word_embeddings and "head.weight" in names:
        _check_tied_head(model, tensors, names["head.weight"])
    grow_vocabulary(model, config.image_token_index + 1)
    model.generation_config = _generation_config(source.checkpoint, config.text_config)
    return Conversion(model, unused)


def convert_llava(
    checkpoint: str, vision_tower: str | None = None, dtype: torch.dtype | None = None, **adapter_fields
) -> Conversion:
    """
    Makes a [`HawaiiForConditionalGeneration`] of a LLaVA with the same answers. Unless fields say otherwise it has no
    adapters; those it has add nothing yet.

    Args:
        checkpoint (`str`):
            Folder or Hub id, in safetensors: in transformers' form, with any language model; or LLaVA's own, whose
            vocabulary is given a token for images, with a row beyond its last.
        vision_tower (`str`, *optional*):
            For LLaVA's own form: folder or Hub id of the encoder, whose tensors are read where the checkpoint holds
            none; what the checkpoint's configuration names if not given.
        dtype (`torch.dtype`, *optional*):
            Type of the parameters; that of the checkpoint's language model if not given.
        adapter_fields:
            Fields of [`HawaiiVisionConfig`] that the checkpoint does not decide, such as `num_teacher_adapters=4`.

    Returns:
        [`Conversion`]

    Raises:
        ValueError: it is no LLaVA or one that does what a student cannot; it lacks a tensor, or holds one that is
            unknown or of another shape; or a field is the checkpoint's to decide.
    """
    source = read_llava(checkpoint, vision_tower)
    if source.model_type == "move_llava_llama":
        raise UserError(f"{checkpoint} is a MoVE-KD, whose encoder has adapters: convert it as move_kd.")
    fields = {"num_teacher_adapters": 0, "num_general_adapters": 0, **adapter_fields}
    vision = make_vision_config(source.vision_config, source.vision_feature_layer, fields)
    return assemble(
        source,
        CheckpointTensors(checkpoint),
        vision,
        vision_targets(source.vision_config, vision),
        lambda part: is_encoder_part_unneeded(part, vision.num_hidden_layers),
        dtype,
    )
