"""The sizes of the published models that the recipes here name, for what is counted before anything is downloaded."""

from pathlib import Path

from transformers import AutoConfig, PretrainedConfig

from ...files.user_error import UserError


# As their own config.json has them. Of a model of several halves, the half that a recipe uses.
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
}


def read_architecture(checkpoint: str) -> PretrainedConfig:
    """
    The configuration of a checkpoint, without its weights: a folder's own, one that is known here, or else the Hub's.

    Args:
        checkpoint (`str`):
            Folder or hub id.

    Raises:
        OSError: the Hub has no such model or cannot be asked.
        ValueError: it is of a kind that transformers does not know, or that brings code of its own, which is not run.
    """
    if checkpoint in ARCHITECTURES and not Path(checkpoint).is_dir():
        fields = dict(ARCHITECTURES[checkpoint])
        return AutoConfig.for_model(fields.pop("model_type"), **fields)
    try:
        return AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
    except OSError as error:
        raise OSError(f"The configuration of {checkpoint} is not to be had: {error}") from error
    except ValueError as error:
        raise UserError(f"The configuration of {checkpoint} is none that transformers knows: {error}") from error
