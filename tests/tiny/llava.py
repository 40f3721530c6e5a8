"""Saves small LLaVA checkpoints with random weights in all existing forms."""

import json
import re
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    PreTrainedModel,
)


CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
    "projection_dim": 8,
}
SIGLIP = {**CLIP, "model_type": "siglip_vision_model", "image_size": 18}
TEXT = {
    "model_type": "llama",
    "vocab_size": 40,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
IMAGE_TOKEN = 39
# Heights and widths; with these as widths and heights, some images would have other tiles.
PINPOINTS = [[16, 32], [48, 16], [32, 32]]


def randomize(model: nn.Module) -> nn.Module:
    """Draws all weights, large enough that images and words change the answers."""
    for name, parameter in model.named_parameters():
        is_scale = "norm" in name.lower() and name.endswith("weight")
        std = 0.3 if parameter.dim() > 1 and "vision" not in name else 0.1
        nn.init.normal_(parameter, mean=1.0 if is_scale else 0.0, std=std)
    return model.eval()


def _fields(vision: dict | None, text: dict | None, fields: dict) -> dict:
    vision = {**CLIP, **(vision or {})}
    is_clip = vision["model_type"] == "clip_vision_model"
    return {
        "vision_config": vision,
        "text_config": {**TEXT, **(text or {})},
        "image_token_index": IMAGE_TOKEN,
        "vision_feature_select_strategy": "default" if is_clip else "full",
        **fields,
    }


def make_llava(vision: dict | None = None, text: dict | None = None, **fields) -> LlavaForConditionalGeneration:
    """transformers' LLaVA; arguments override the fields above."""
    return randomize(LlavaForConditionalGeneration(LlavaConfig(**_fields(vision, text, fields))))


def make_llava_next(
    vision: dict | None = None, text: dict | None = None, **fields
) -> LlavaNextForConditionalGeneration:
    """transformers' LLaVA-NeXT, which cuts images into tiles; arguments override the fields above."""
    config = LlavaNextConfig(**_fields(vision, text, {"image_grid_pinpoints": PINPOINTS, **fields}))
    return randomize(LlavaNextForConditionalGeneration(config))


def rename(tensors: dict[str, torch.Tensor], *patterns: tuple[str, str]) -> dict[str, torch.Tensor]:
    """Copies tensors under new names: in each name, the first pattern that matches its beginning is replaced."""
    renamed = {}
    for name, tensor in tensors.items():
        for pattern, replacement in patterns:
            new, is_renamed = re.subn(f"^{pattern}", replacement, name)
            if is_renamed:
                name = new
                break
        renamed[name] = tensor.clone()
    return renamed


def save_tensors(folder: Path, tensors: dict[str, torch.Tensor], num_files: int = 1) -> None:
    """Writes tensors to one file, or alternately to several with an index, so that each layer is spread over files."""
    if num_files == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return
    names = [f"model-{number + 1:05}-of-{num_files:05}.safetensors" for number in range(num_files)]
    # In pairs; otherwise all weights would be in one file and all biases in the other.
    weight_map = {name: names[index // 2 % num_files] for index, name in enumerate(tensors)}
    for file in names:
        save_file({name: tensors[name] for name in tensors if weight_map[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def save_as_transformers_4(llava: PreTrainedModel, folder: Path, num_files: int = 1) -> Path:
    """Saves with the names of llava-hf's checkpoints: a complete language model next to a complete encoder."""
    llava.config.save_pretrained(folder)
    tensors = rename(
        llava.state_dict(),
        (r"model\.vision_tower\.", "vision_tower.vision_model."),
        (r"model\.multi_modal_projector\.", "multi_modal_projector."),
        (r"model\.image_newline", "image_newline"),
        (r"model\.language_model\.", "language_model.model."),
        (r"lm_head\.", "language_model.lm_head."),
    )
    save_tensors(folder, tensors, num_files)
    return folder


def save_clip(folder: Path, llava: PreTrainedModel | None = None) -> Path:
    """Saves the encoder of a LLaVA, or another of the same size, as a separate checkpoint."""
    clip = randomize(CLIPVisionModel(CLIPVisionConfig(**CLIP)))
    if llava is not None:
        clip.load_state_dict(llava.model.vision_tower.state_dict())
    clip.save_pretrained(folder)
    return folder


def save_original(
    llava: PreTrainedModel,
    folder: Path,
    vision_tower: Path,
    has_tower: bool = False,
    num_files: int = 1,
    **fields,
) -> Path:
    """
    Saves transformers' LLaVA or LLaVA-NeXT in LLaVA's own form, which has other names, no token for images, and the
    width of each grid of tiles before its height.
    """
    folder.mkdir()
    text = llava.config.text_config
    values = {name: value for name, value in text.to_diff_dict().items() if name not in ("rope_parameters", "dtype")}
    values |= {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava_llama",
        "vocab_size": text.vocab_size,
        "rope_theta": 1e4,
        "image_aspect_ratio": "pad",
        "mm_hidden_size": 64,
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": str(vision_tower),
        "tune_mm_mlp_adapter": False,
        "use_mm_proj": True,
    }
    if llava.config.model_type == "llava_next":
        values |= {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad"}
        values["image_grid_pinpoints"] = [[width, height] for height, width in llava.config.image_grid_pinpoints]
    (folder / "config.json").write_text(json.dumps(values | fields))
    tensors = rename(
        llava.state_dict(),
        (r"model\.vision_tower\.", "model.vision_tower.vision_tower.vision_model."),
        (r"model\.multi_modal_projector\.linear_1", "model.mm_projector.0"),
        (r"model\.multi_modal_projector\.linear_2", "model.mm_projector.2"),
        (r"model\.language_model\.", "model."),
    )
    if not has_tower:
        tensors = {name: tensor for name, tensor in tensors.items() if "vision_tower" not in name}
    save_tensors(folder, tensors, num_files)
    return folder
