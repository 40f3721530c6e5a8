"""Configurations of the published models in the built-in recipes, to count them without downloads."""

from pathlib import Path

from transformers import AutoConfig, PretrainedConfig

from ...files.user_error import explain_errors


# From their config.json files. CLIP, SigLIP 2, SAM, SAM 3 and Pix2Struct: only the vision part, which recipes use.
ARCHITECTURES = {
    "openai/clip-vit-large-patch14-336": {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
        "projection_dim": 768,
    },
    "facebook/sam-vit-large": {
        "model_type": "sam_vision_model",
        "hidden_size": 1024,
        "mlp_dim": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "global_attn_indexes": [5, 11, 17, 23],
        "output_channels": 256,
        "image_size": 1024,
        "patch_size": 16,
        "window_size": 14,
    },
    "google/pix2struct-large": {
        "model_type": "pix2struct_vision_model",
        "hidden_size": 1536,
        "d_ff": 3968,
        "d_kv": 64,
        "num_hidden_layers": 18,
        "num_attention_heads": 24,
        "patch_embed_hidden_size": 768,
        "patch_size": 16,
        "seq_len": 4096,
    },
    "google/siglip2-so400m-patch16-384": {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 16,
    },
    "google/siglip2-base-patch16-384": {
        "model_type": "siglip_vision_model",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 384,
        "patch_size": 16,
    },
    "google/siglip2-large-patch16-384": {
        "model_type": "siglip_vision_model",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 16,
    },
    "facebook/dinov3-vitl16-pretrain-lvd1689m": {
        "model_type": "dinov3_vit",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_register_tokens": 4,
        "image_size": 224,
        "patch_size": 16,
    },
    "facebook/sam3": {
        "model_type": "sam3_vision_model",
        "backbone_config": {
            "model_type": "sam3_vit_model",
            "hidden_size": 1024,
            "intermediate_size": 4736,
            "num_hidden_layers": 32,
            "num_attention_heads": 16,
            "image_size": 1008,
            "patch_size": 14,
            "window_size": 24,
            "global_attn_indexes": [7, 15, 23, 31],
            "pretrain_image_size": 336,
            "layer_scale_init_value": None,
        },
        "fpn_hidden_size": 256,
        "scale_factors": [4.0, 2.0, 1.0, 0.5],
    },
    "nvidia/C-RADIOv4-H": {
        "model_type": "radio",
        "hidden_size": 1280,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "patch_size": 16,
        "max_img_size": 2048,
        "num_cls_tokens": 3,
        "num_registers": 7,
    },
    "lmsys/vicuna-7b-v1.5": {
        "model_type": "llama",
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    },
    "Qwen/Qwen3-0.6B": {
        "model_type": "qwen3",
        "vocab_size": 151936,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
    },
}
# Number of tokens of their tokenizers, which are not downloaded; Qwen3 has more embeddings than tokens.
NUM_TOKENS = {"lmsys/vicuna-7b-v1.5": 32000, "Qwen/Qwen3-0.6B": 151669}


def known_architecture(checkpoint: str) -> PretrainedConfig | None:
    """Returns the configuration of a published model that is listed above, unless a folder has its name."""
    if checkpoint not in ARCHITECTURES or Path(checkpoint).is_dir():
        return None
    fields = dict(ARCHITECTURES[checkpoint])
    return AutoConfig.for_model(fields.pop("model_type"), **fields)


def read_architecture(checkpoint: str) -> PretrainedConfig:
    """
    Reads the configuration of a checkpoint, without its weights: from a folder, the list above or the Hub.

    Args:
        checkpoint (`str`):
            Folder or hub id.

    Raises:
        OSError: the Hub has no such model or cannot be reached.
        UserError: transformers does not know the model type, a field is invalid, or the model needs code from the
            checkpoint, which is never run.
    """
    if known := known_architecture(checkpoint):
        return known
    try:
        with explain_errors(f"transformers does not know the configuration of {checkpoint}"):
            return AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
    except OSError as error:
        raise OSError(f"The configuration of {checkpoint} could not be read: {error}") from error
