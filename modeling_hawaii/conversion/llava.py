"""Starts a student from a LLaVA or a LLaVA-NeXT: the same model, without the parts that do not affect its answers."""

import re

import torch
from transformers import GenerationConfig

from ...configuration.configuration_hawaii import HawaiiConfig, HawaiiVisionConfig
from ...files.atomic import read_json
from ...files.user_error import UserError, explain_errors
from ..modeling_hawaii import HawaiiForConditionalGeneration
from .checkpoint_tensors import CheckpointTensors, find_file
from .clip import is_unneeded, make_vision_config, match_vision_tensors, vision_targets
from .llava_checkpoint import LlavaCheckpoint, read_llava
from .tensor_targets import Conversion, TensorTarget, build_empty, fill_model, match_tensors
from .vocabulary import grow_vocabulary


# Rotary frequencies, which old versions saved and new ones compute.
COMPUTED = re.compile(r"(^|\.)rotary_emb\.inv_freq$")
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def _decoder_targets(model: HawaiiForConditionalGeneration) -> dict[str, TensorTarget]:
    """Targets of all tensors except the encoder's, by part name."""
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
    if model.config.image_grid_pinpoints is not None:
        targets["image_newline"] = TensorTarget("model.image_newline")
    return targets


def _in_model(encoder_targets: dict[str, TensorTarget]) -> dict[str, TensorTarget]:
    """Targets in an encoder as targets in the complete model."""
    return {
        name: target._replace(name=f"model.vision_tower.{target.name}") for name, target in encoder_targets.items()
    }


def _is_computed(part: str, model: HawaiiForConditionalGeneration) -> bool:
    """Whether the model computes or ties a tensor of the language model or the head."""
    if part == "head.weight":
        return model.config.tie_word_embeddings
    ignored = model.model.language_model._keys_to_ignore_on_load_unexpected or []
    return part.startswith("text.") and (
        bool(COMPUTED.search(part)) or any(re.search(pattern, part.removeprefix("text.")) for pattern in ignored)
    )


def _check_tied_head(model: HawaiiForConditionalGeneration, tensors: CheckpointTensors, name: str) -> None:
    """Refuses a tied head `name` that differs from the embeddings: it would be silently dropped."""
    embeddings = model.get_input_embeddings().weight
    for _, head in tensors.read([name]):
        if not torch.equal(head.type_as(embeddings), embeddings):
            raise UserError(
                f"The {name} of {tensors.checkpoint} differs from the embeddings, but config.json ties them. If the "
                "head is separate, set tie_word_embeddings to false there, also in text_config."
            )


def assemble(
    source: LlavaCheckpoint,
    tensors: CheckpointTensors,
    vision: HawaiiVisionConfig,
    encoder_targets: dict[str, TensorTarget],
    dtype: torch.dtype | None,
    unneeded: re.Pattern | None = None,
) -> Conversion:
    """
    Builds a model from the configuration and the tensors of a LLaVA; arguments and errors as for [`convert_llava`].

    Args:
        vision (`HawaiiVisionConfig`):
            Configuration of the encoder to build.
        encoder_targets (`dict[str, TensorTarget]`):
            Targets of the encoder's tensors, if `tensors` has them; named as in [`vision_targets`].
        unneeded (`re.Pattern`, *optional*):
            Part names that are known to have no target, in addition to LLaVA's.
    """
    names = {source.part_name(name): name for name in tensors.names}
    dtype = dtype or tensors.main_dtype([name for part, name in names.items() if part.startswith("text.")])
    text, image_token_index = source.text_config, source.image_token_index
    with explain_errors(f"No student can be built from the configuration of {source.checkpoint}"):
        config = HawaiiConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=text.vocab_size if image_token_index is None else image_token_index,
            projector_hidden_act=source.projector_hidden_act,
            multimodal_projector_bias=source.multimodal_projector_bias,
            head_bias="head.bias" in names,
            image_grid_pinpoints=source.image_grid_pinpoints,
        )
        model = build_empty(HawaiiForConditionalGeneration, config, dtype)
    parts = _decoder_targets(model)
    towers = []
    if source.vision_tower is None or any(part.startswith("vision.") for part in names):
        parts |= {f"vision.{name}": target for name, target in _in_model(encoder_targets).items()}
    else:
        tower = CheckpointTensors(source.vision_tower)
        tower_targets, _ = match_vision_tensors(tower, source.vision_config, vision)
        towers = [(tower, _in_model(tower_targets))]
    # Tensors that the checkpoint lacks are reported by their names in the model.
    targets = {names.get(part, target.name): target for part, target in parts.items()}

    def has_no_target(name: str) -> bool:
        part = source.part_name(name)
        if part.startswith("vision.") and is_unneeded(part.removeprefix("vision."), vision.num_hidden_layers):
            return True
        return _is_computed(part, model) or (unneeded is not None and bool(unneeded.match(part)))

    unused = match_tensors(tensors, targets, has_no_target, "a LLaVA with its config.json")
    fill_model(model, [*towers, (tensors, targets)], dtype)
    if config.tie_word_embeddings and "head.weight" in names:
        _check_tied_head(model, tensors, names["head.weight"])
    grow_vocabulary(model, config.image_token_index + 1)
    # Only token ids: LLaVA's own files contain sampling options that transformers 5 refuses to save.
    path = find_file(source.checkpoint, "generation_config.json")
    values = {} if path is None else read_json(path)
    ids = {name: values.get(name, getattr(text, name, None)) for name in TOKEN_IDS}
    model.generation_config = GenerationConfig(**ids)
    return Conversion(model, unused)


def convert_llava(
    checkpoint: str, vision_tower: str | None = None, dtype: torch.dtype | None = None, **adapter_fields
) -> Conversion:
    """
    Converts a LLaVA to a [`HawaiiForConditionalGeneration`] that gives the same answers; a LLaVA-NeXT (LLaVA-1.6) to
    one that cuts images into the same tiles. It has no adapters unless `adapter_fields` add some; new adapters add
    nothing yet.

    Args:
        checkpoint (`str`):
            Folder or Hub id, in safetensors: transformers' form with any language model, or LLaVA's own form, whose
            vocabulary gets a token for images in a new last row.
        vision_tower (`str`, *optional*):
            For LLaVA's own form: folder or Hub id of the encoder, which is read if the checkpoint does not contain it;
            defaults to the one that the checkpoint's configuration names.
        dtype (`torch.dtype`, *optional*):
            Type of the parameters; defaults to that of the checkpoint's language model.
        adapter_fields:
            Fields of [`HawaiiVisionConfig`] that the checkpoint does not determine, such as `num_teacher_adapters=4`.

    Raises:
        UserError: the checkpoint is no LLaVA, or uses something that a student does not support; it lacks a tensor, or
            has one that is unknown or of another shape; or it determines one of the fields.
    """
    source = read_llava(checkpoint, vision_tower)
    if source.model_type == "move_llava_llama":
        raise UserError(f"{checkpoint} is a MoVE-KD, whose encoder has adapters: convert it as move_kd.")
    fields = {"num_teacher_adapters": 0, "num_general_adapters": 0, **adapter_fields}
    vision = make_vision_config(source.vision_config, source.vision_feature_layer, fields)
    return assemble(source, CheckpointTensors(checkpoint), vision, vision_targets(source.vision_config, vision), dtype)
