"""Starts a student from CLIP: the same encoder, cut at the layer that the language model sees, with fresh adapters."""

import re

import torch
from transformers import AutoConfig, CLIPVisionModel

from ..configuration.configuration_hawaii import HawaiiVisionConfig
from .vision_hawaii import HawaiiVisionModel


CLIP_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_channels",
    "image_size",
    "patch_size",
    "hidden_act",
    "layer_norm_eps",
    "attention_dropout",
    "initializer_range",
)
ADAPTER_FIELDS = (
    "num_teacher_adapters",
    "num_general_adapters",
    "lora_rank",
    "lora_alpha",
    "adapter_placement",
    "router_hidden_size",
    "router_gradient",
)

# Ours: CLIP's. Several of CLIP's are stacked, in this order.
EMBEDDING_NAMES = {
    "embeddings.class_embedding": ["embeddings.class_embedding"],
    "embeddings.patch_embedding.weight": ["embeddings.patch_embedding.weight"],
    "embeddings.position_embedding": ["embeddings.position_embedding.weight"],
    "pre_layer_norm.weight": ["pre_layrnorm.weight"],
    "pre_layer_norm.bias": ["pre_layrnorm.bias"],
}
LAYER_NAMES = {
    "layer_norm1": ["layer_norm1"],
    "attention.qkv": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "attention.out": ["self_attn.out_proj"],
    "layer_norm2": ["layer_norm2"],
    "feed_forward.fc1": ["mlp.fc1"],
    "feed_forward.fc2": ["mlp.fc2"],
}
# What a CLIP checkpoint holds beyond the encoder's features: the other half of CLIP, and its pooling.
UNNEEDED = re.compile(
    r"(vision_model\.)?(text_model\.|text_projection\.|visual_projection\.|logit_scale$|post_layernorm\.|embeddings\.position_ids$)"
)
ADAPTER_NAMES = re.compile(r"layers\.\d+\.feed_forward\.(routing|(fc1_|fc2_)?adapters)\.")


def _make_config(clip_config, vision_feature_layer: int, adapter_fields: dict) -> HawaiiVisionConfig:
    # hidden_states[0] is the embeddings and hidden_states[k] the output of the k-th layer.
    num_states = clip_config.num_hidden_layers + 1
    if not -num_states <= vision_feature_layer < num_states:
        raise ValueError(
            f"vision_feature_layer is {vision_feature_layer}, but this CLIP of {num_states - 1} layers has hidden "
            f"states {-num_states} to {num_states - 1}."
        )
    for name in adapter_fields:
        if name not in ADAPTER_FIELDS:
            raise ValueError(f"{name} is not an adapter's field; CLIP decides all but {', '.join(ADAPTER_FIELDS)}.")
    return HawaiiVisionConfig(
        num_hidden_layers=vision_feature_layer % num_states,
        **{name: getattr(clip_config, name) for name in CLIP_FIELDS},
        **adapter_fields,
    )


def _convert_state(clip_state: dict[str, torch.Tensor], num_hidden_layers: int) -> dict[str, torch.Tensor]:
    """The tensors of a `CLIPVisionModel` under the names of a [`HawaiiVisionModel`] of `num_hidden_layers` layers."""
    names = dict(EMBEDDING_NAMES)
    for layer in range(num_hidden_layers):
        for ours, theirs in LAYER_NAMES.items():
            for kind in ("weight", "bias"):
                names[f"layers.{layer}.{ours}.{kind}"] = [f"encoder.layers.{layer}.{their}.{kind}" for their in theirs]
    clip_state = {name.removeprefix("vision_model."): tensor for name, tensor in clip_state.items()}
    return {ours: torch.cat([clip_state[their] for their in theirs]) for ours, theirs in names.items()}


def convert_clip(
    checkpoint: str, vision_feature_layer: int = -2, dtype: torch.dtype = torch.float32, **adapter_fields
) -> HawaiiVisionModel:
    """
    Makes a [`HawaiiVisionModel`] of a CLIP checkpoint. Its adapters add nothing yet: its features are CLIP's
    `hidden_states[vision_feature_layer]`.

    Args:
        checkpoint (`str`):
            Folder or Hub id of a `CLIPModel`, `CLIPVisionModel` or `CLIPVisionModelWithProjection`.
        vision_feature_layer (`int`, *optional*, defaults to -2):
            Which of CLIP's `hidden_states` the language model sees, as in LLaVA. Later layers are not built.
        dtype (`torch.dtype`, *optional*, defaults to `torch.float32`):
            Type of the parameters.
        adapter_fields:
            Fields of [`HawaiiVisionConfig`] that CLIP does not decide, such as `num_teacher_adapters=4`.

    Raises:
        ValueError: the checkpoint is no CLIP, lacks a tensor or holds one that is unknown; the layer does not exist;
            or a field is CLIP's to decide.
    """
    try:
        model_type = AutoConfig.from_pretrained(checkpoint).model_type
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{checkpoint} is no CLIP checkpoint: no folder of that name holds a configuration that transformers "
            "knows, and the Hub gives no model of that name."
        ) from error
    if model_type not in ("clip", "clip_vision_model"):
        raise ValueError(f"{checkpoint} is a {model_type!r} checkpoint; a student starts from a 'clip' one.")
    clip, loading = CLIPVisionModel.from_pretrained(checkpoint, dtype=dtype, output_loading_info=True)
    unknown = [name for name in sorted(loading["unexpected_keys"]) if not UNNEEDED.match(name)]
    problems = {
        "lacks": sorted(loading["missing_keys"]),
        "has in another shape": sorted(str(key) for key in loading["mismatched_keys"]),
        "has beyond what a CLIP has": unknown,
    }
    for problem, names in problems.items():
        if names:
            raise ValueError(f"{checkpoint} {problem}: {', '.join(names)}. It is damaged or not a plain CLIP.")

    config = _make_config(clip.config, vision_feature_layer, adapter_fields)
    model = HawaiiVisionModel(config).to(dtype)
    state = _convert_state(clip.state_dict(), config.num_hidden_layers)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and all(ADAPTER_NAMES.match(name) for name in missing), (missing, unexpected)
    return model.eval()
