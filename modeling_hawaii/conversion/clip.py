"""Starts a student from CLIP or SigLIP: the same encoder, cut at the layer whose features the language model reads."""

import math
import re
from pathlib import Path

import torch
from transformers import AutoConfig, PretrainedConfig

from ...configuration.configuration_hawaii import HawaiiVisionConfig
from ...files.model_folder import check_is_no_part, check_json_files
from ...files.user_error import UserError, explain_errors
from ..vision_hawaii import HawaiiVisionModel
from .checkpoint_tensors import CheckpointTensors
from .tensor_targets import Conversion, TensorTarget, build_empty, fill_model, match_tensors


# SigLIP 2 checkpoints of a fixed resolution have SigLIP's types; the siglip2 types are NaFlex, for any aspect ratio.
CLIP_TYPES = ("clip", "clip_vision_model")
SIGLIP_TYPES = ("siglip", "siglip_vision_model")
NAFLEX_TYPES = ("siglip2", "siglip2_vision_model")

SHARED_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_channels",
    "patch_size",
    "hidden_act",
    "layer_norm_eps",
    "attention_dropout",
)
ADAPTER_FIELDS = (
    "num_teacher_adapters",
    "num_general_adapters",
    "lora_rank",
    "lora_alpha",
    "lora_bias",
    "adapter_placement",
    "router_hidden_size",
    "router_gradient",
)

# Module names in CLIP: our name, and the third of our fused projection that it fills.
LAYER_NAMES = {
    "layer_norm1": ("layer_norm1", None),
    "self_attn.q_proj": ("attention.qkv", 0),
    "self_attn.k_proj": ("attention.qkv", 1),
    "self_attn.v_proj": ("attention.qkv", 2),
    "self_attn.out_proj": ("attention.out", None),
    "layer_norm2": ("layer_norm2", None),
    "mlp.fc1": ("feed_forward.fc1", None),
    "mlp.fc2": ("feed_forward.fc2", None),
}
# The text model, the pooling and computed positions: not part of the encoder's features.
UNNEEDED = re.compile(
    r"(text_model\.|text_projection\.|visual_projection\.|logit_scale$|logit_bias$|post_layernorm\.|head\."
    r"|embeddings\.position_ids$)"
)
LAYER = re.compile(r"encoder\.layers\.(?P<layer>\d+)\.")


def load_vision_config(checkpoint: str) -> PretrainedConfig:
    """
    Loads the configuration of a checkpoint's encoder.

    Raises:
        UserError: there is none, or a student cannot start from an encoder of this type.
    """
    folder = Path(str(checkpoint))
    if folder.is_dir():
        check_is_no_part(folder)
        check_json_files(folder, ["config.json"])
    try:
        config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{checkpoint} is no CLIP checkpoint: no folder of that name contains a configuration that transformers "
            "knows, and the Hub, where a name is owner/name, has no model of that name."
        ) from error
    if config.model_type not in CLIP_TYPES + SIGLIP_TYPES + NAFLEX_TYPES:
        raise UserError(
            f"{checkpoint} is a {config.model_type!r} checkpoint; a student starts from a 'clip', a 'siglip' or a "
            "'siglip2' one."
        )
    return getattr(config, "vision_config", config)


def _image_size(config: PretrainedConfig) -> int:
    if config.model_type not in NAFLEX_TYPES:
        return config.image_size
    side = math.isqrt(config.num_patches)
    if side**2 != config.num_patches:
        raise UserError(f"This SigLIP 2 has positions of {config.num_patches} patches, which do not form a square.")
    return side * config.patch_size


def make_vision_config(
    config: PretrainedConfig, vision_feature_layer: int, adapter_fields: dict
) -> HawaiiVisionConfig:
    """
    Makes the configuration of a student that starts from the encoder of `config` and ends at its
    `hidden_states[vision_feature_layer]`. `adapter_fields` are the fields that the encoder does not determine.

    Raises:
        UserError: the layer does not exist, the encoder determines one of the fields, or a value is invalid.
    """
    # hidden_states[0] is the embeddings and hidden_states[k] the output of the k-th layer.
    num_states = config.num_hidden_layers + 1
    if not -num_states <= vision_feature_layer < num_states:
        raise UserError(
            f"vision_feature_layer is {vision_feature_layer}, but this encoder of {num_states - 1} layers has hidden "
            f"states {-num_states} to {num_states - 1}."
        )
    for name in adapter_fields:
        if name not in ADAPTER_FIELDS:
            raise UserError(
                f"{name} is not an adapter field; the checkpoint determines all fields except "
                f"{', '.join(ADAPTER_FIELDS)}."
            )
    is_clip = config.model_type in CLIP_TYPES
    fields = {name: getattr(config, name) for name in SHARED_FIELDS}
    if is_clip:
        fields["initializer_range"] = config.initializer_range
    with explain_errors():
        return HawaiiVisionConfig(
            num_hidden_layers=vision_feature_layer % num_states,
            image_size=_image_size(config),
            has_class_token=is_clip,
            has_pre_layer_norm=is_clip,
            has_patch_bias=not is_clip,
            **fields,
            **adapter_fields,
        )


def vision_targets(config: PretrainedConfig, vision: HawaiiVisionConfig) -> dict[str, TensorTarget]:
    """
    Targets of an encoder's tensors in a [`HawaiiVisionModel`], by the names that CLIP and SigLIP share, without
    `vision_model.`.
    """

    def unflatten_patch(weight: torch.Tensor) -> torch.Tensor:
        """NaFlex's matrix over the pixels of a patch, channels last, as the kernel of a convolution."""
        return weight.unflatten(1, (vision.patch_size, vision.patch_size, vision.num_channels)).permute(0, 3, 1, 2)

    patch = "embeddings.patch_embedding"
    view = unflatten_patch if config.model_type in NAFLEX_TYPES else None
    targets = {
        "embeddings.position_embedding.weight": TensorTarget("embeddings.position_embedding"),
        f"{patch}.weight": TensorTarget(f"{patch}.weight", view=view),
    }
    if vision.has_patch_bias:
        targets[f"{patch}.bias"] = TensorTarget(f"{patch}.bias")
    if vision.has_class_token:
        targets["embeddings.class_embedding"] = TensorTarget("embeddings.class_embedding")
    width = vision.hidden_size
    for parameter in ("weight", "bias"):
        if vision.has_pre_layer_norm:
            targets[f"pre_layrnorm.{parameter}"] = TensorTarget(f"pre_layer_norm.{parameter}")
        for layer in range(vision.num_hidden_layers):
            for theirs, (ours, third) in LAYER_NAMES.items():
                index = slice(None) if third is None else slice(third * width, (third + 1) * width)
                target = TensorTarget(f"layers.{layer}.{ours}.{parameter}", index)
                targets[f"encoder.layers.{layer}.{theirs}.{parameter}"] = target
    return targets


def is_unneeded(name: str, num_hidden_layers: int) -> bool:
    """Whether a student of `num_hidden_layers` layers does not need a tensor, named as in [`vision_targets`]."""
    layer = LAYER.match(name)
    return bool(UNNEEDED.match(name)) or (layer is not None and int(layer["layer"]) >= num_hidden_layers)


def match_vision_tensors(
    tensors: CheckpointTensors, config: PretrainedConfig, vision: HawaiiVisionConfig
) -> tuple[dict[str, TensorTarget], list[str]]:
    """
    Targets of the tensors of a complete CLIP or SigLIP, or of its encoder alone, by the checkpoint's own names, and
    the names of tensors without a target; errors as for [`match_tensors`].
    """
    # transformers 5 writes an encoder alone without this prefix.
    prefix = "vision_model." if any(name.startswith("vision_model.") for name in tensors.names) else ""
    targets = {prefix + name: target for name, target in vision_targets(config, vision).items()}
    unused = match_tensors(
        tensors,
        targets,
        lambda name: is_unneeded(name.removeprefix(prefix), vision.num_hidden_layers),
        "a CLIP" if config.model_type in CLIP_TYPES else "a SigLIP",
    )
    return targets, unused


def convert_clip(
    checkpoint: str, vision_feature_layer: int = -2, dtype: torch.dtype | None = None, **adapter_fields
) -> Conversion:
    """
    Converts a CLIP, SigLIP or SigLIP 2 checkpoint to a [`HawaiiVisionModel`]. Its adapters add nothing yet: its
    features are the checkpoint's `hidden_states[vision_feature_layer]`. A SigLIP 2 for any aspect ratio (NaFlex)
    becomes an encoder of squares at the size that its positions were trained for.

    Args:
        checkpoint (`str`):
            Folder or Hub id of a complete model or its encoder, in safetensors.
        vision_feature_layer (`int`, *optional*, defaults to -2):
            Index of the `hidden_states` that the language model reads, as in LLaVA. Later layers are not built.
        dtype (`torch.dtype`, *optional*):
            Type of the parameters; defaults to the checkpoint's.
        adapter_fields:
            Fields of [`HawaiiVisionConfig`] that the checkpoint does not determine, such as `num_teacher_adapters=4`.

    Raises:
        UserError: the checkpoint has another type, lacks a tensor, or has one that is unknown or of another shape; the
            layer does not exist; or the checkpoint determines one of the fields.
    """
    config = load_vision_config(checkpoint)
    vision = make_vision_config(config, vision_feature_layer, adapter_fields)
    tensors = CheckpointTensors(checkpoint)
    targets, unused = match_vision_tensors(tensors, config, vision)
    dtype = dtype or tensors.main_dtype(targets)
    with explain_errors(f"No student can be built from the configuration of {checkpoint}"):
        model = build_empty(HawaiiVisionModel, vision, dtype)
    return Conversion(fill_model(model, [(tensors, targets)], dtype), unused)
