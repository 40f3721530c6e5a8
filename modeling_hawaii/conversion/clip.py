"""Starts a student from CLIP or SigLIP: the same encoder, cut at the layer that the language model sees."""

import math
import re
from functools import partial

import torch
from transformers import AutoConfig, PretrainedConfig

from ...configuration.configuration_hawaii import HawaiiVisionConfig
from ...files.user_error import UserError
from ..vision_hawaii import HawaiiVisionModel
from .checkpoint_tensors import CheckpointTensors
from .tensor_targets import Conversion, TensorTarget, build_empty, fill_model, match_tensors


# SigLIP 2 of one resolution is of SigLIP's types; its own are those of NaFlex, which takes any aspect ratio.
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

# Theirs: ours, and which third of it where ours holds three of theirs.
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
# What a checkpoint holds beyond the encoder's features: the text's half, the pooling, and counts that are computed.
UNNEEDED = re.compile(
    r"(text_model\.|text_projection\.|visual_projection\.|logit_scale$|logit_bias$|post_layernorm\.|head\."
    r"|embeddings\.position_ids$)"
)
LAYER = re.compile(r"encoder\.layers\.(?P<layer>\d+)\.")


def load_vision_config(checkpoint: str) -> PretrainedConfig:
    """
    Reads the configuration of a checkpoint's encoder.

    Raises:
        ValueError: there is none, or it is of a kind that a student cannot start from.
    """
    try:
        config = AutoConfig.from_pretrained(checkpoint)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{checkpoint} is no CLIP checkpoint: no folder of that name holds a configuration that transformers "
            "knows, and the Hub gives no model of that name."
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
        raise UserError(f"This SigLIP 2 learned positions of {config.num_patches} patches, which make no square.")
    return side * config.patch_size


def make_vision_config(
    config: PretrainedConfig, vision_feature_layer: int, adapter_fields: dict
) -> HawaiiVisionConfig:
    """
    The configuration of a student that starts from an encoder.

    Args:
        config (`PretrainedConfig`):
            Of the encoder, from [`load_vision_config`].
        vision_feature_layer (`int`):
            Which of its `hidden_states` the language model sees.
        adapter_fields (`dict`):
            What the encoder does not decide.

    Raises:
        ValueError: the layer does not exist, or a field is the encoder's to decide.
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
                f"{name} is not an adapter's field; the checkpoint decides all but {', '.join(ADAPTER_FIELDS)}."
            )
    is_clip = config.model_type in CLIP_TYPES
    fields = {name: getattr(config, name) for name in SHARED_FIELDS}
    if is_clip:
        fields["initializer_range"] = config.initializer_range
    return HawaiiVisionConfig(
        num_hidden_layers=vision_feature_layer % num_states,
        image_size=_image_size(config),
        has_class_token=is_clip,
        has_pre_layer_norm=is_clip,
        has_patch_bias=not is_clip,
        **fields,
        **adapter_fields,
    )


def _unflatten_patch(weight: torch.Tensor, num_channels: int, patch_size: int) -> torch.Tensor:
    """NaFlex's matrix over the pixels of a patch, channels last, as the kernel of a convolution."""
    return weight.unflatten(1, (patch_size, patch_size, num_channels)).permute(0, 3, 1, 2)


def vision_targets(config: PretrainedConfig, vision: HawaiiVisionConfig) -> dict[str, TensorTarget]:
    """
    Where an encoder's tensors go in a [`HawaiiVisionModel`], by the names that CLIP and SigLIP share, without
    `vision_model.`.
    """
    targets = {"embeddings.position_embedding.weight": TensorTarget("embeddings.position_embedding")}
    patch_weight = TensorTarget("embeddings.patch_embedding.weight")
    if config.model_type in NAFLEX_TYPES:
        view = partial(_unflatten_patch, num_channels=vision.num_channels, patch_size=vision.patch_size)
        patch_weight = patch_weight._replace(view=view)
    targets["embeddings.patch_embedding.weight"] = patch_weight
    if vision.has_patch_bias:
        targets["embeddings.patch_embedding.bias"] = TensorTarget("embeddings.patch_embedding.bias")
    if vision.has_class_token:
        targets["embeddings.class_embedding"] = TensorTarget("embeddings.class_embedding")
    for kind in ("weight", "bias"):
        if vision.has_pre_layer_norm:
            targets[f"pre_layrnorm.{kind}"] = TensorTarget(f"pre_layer_norm.{kind}")
        for layer in range(vision.num_hidden_layers):
            for theirs, (ours, third) in LAYER_NAMES.items():
                width = vision.hidden_size
                index = slice(None) if third is None else slice(third * width, (third + 1) * width)
                targets[f"encoder.layers.{layer}.{theirs}.{kind}"] = TensorTarget(
                    f"layers.{layer}.{ours}.{kind}", index
                )
    return targets


def is_unneeded(name: str, num_hidden_layers: int) -> bool:
    """Whether a tensor, named as in [`vision_targets`], is one that a student of so many layers does without."""
    layer = LAYER.match(name)
    return bool(UNNEEDED.match(name)) or (layer is not None and int(layer["layer"]) >= num_hidden_layers)


def match_vision_tensors(
    tensors: CheckpointTensors, config: PretrainedConfig, vision: HawaiiVisionConfig
) -> tuple[dict[str, TensorTarget], list[str]]:
    """
    Where the tensors of a whole CLIP or SigLIP, or of its encoder alone, go, by the checkpoint's own names; and those
    that have no place.

    Raises:
        ValueError: a tensor is missing or unknown.
    """
    # transformers 5 writes the encoder alone without this prefix.
    prefix = "vision_model." if any(name.startswith("vision_model.") for name in tensors.names) else ""
    targets = {prefix + name: place for name, place in vision_targets(config, vision).items()}
    is_clip = config.model_type in CLIP_TYPES
    unused = match_tensors(
        tensors,
        targets,
        lambda name: is_unneeded(name.removeprefix(prefix), vision.num_hidden_layers),
        "a CLIP" if is_clip else "a SigLIP",
    )
    return targets, unused


def convert_clip(
    checkpoint: str, vision_feature_layer: int = -2, dtype: torch.dtype | None = None, **adapter_fields
) -> Conversion:
    """
    Makes a [`HawaiiVisionModel`] of a CLIP, SigLIP or SigLIP 2 checkpoint. Its adapters add nothing yet: its features
    are the checkpoint's `hidden_states[vision_feature_layer]`. Of a SigLIP 2 that takes any aspect ratio (NaFlex), it
    is the encoder of squares at the size that its positions were learned for.

    Args:
        checkpoint (`str`):
            Folder or Hub id of a whole model or its encoder, in safetensors.
        vision_feature_layer (`int`, *optional*, defaults to -2):
            Which `hidden_states` the language model sees, as in LLaVA. Later layers are not built.
        dtype (`torch.dtype`, *optional*):
            Type of the parameters; the checkpoint's if not given.
        adapter_fields:
            Fields of [`HawaiiVisionConfig`] that the checkpoint does not decide, such as `num_teacher_adapters=4`.

    Returns:
        [`Conversion`]

    Raises:
        ValueError: the checkpoint is of another kind, lacks a tensor, or holds one that is unknown or of another
            shape; the layer does not exist; or a field is the checkpoint's to decide.
    """
    config = load_vision_config(checkpoint)
    vision = make_vision_config(config, vision_feature_layer, adapter_fields)
    tensors = CheckpointTensors(checkpoint)
    targets, unused = match_vision_tensors(tensors, config, vision)
    dtype = dtype or tensors.main_dtype(targets)
    model = build_empty(HawaiiVisionModel, vision, dtype)
    return Conversion(fill_model(model, [(tensors, targets)], dtype), unused)
