"""Tiny but complete models and processors with random weights, loaded through the real loading code."""

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import nn
from transformers import CLIPImageProcessor, PreTrainedTokenizerFast

from hawaii import HawaiiConfig, HawaiiForConditionalGeneration, HawaiiProcessor
from hawaii.processing.chat_templates import load_chat_template
from hawaii.processing.image_processing_hawaii import HawaiiImageProcessor


WORDS = (
    "a artificial assistant answers between chat curious detailed gives helpful human intelligence polite questions "
    "s the to user USER ASSISTANT : . , ' and an what color shape is of image blue red circle square yes no ? in there"
).split()

VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 4,
    "lora_rank": 4,
    "lora_alpha": 4,
    "router_hidden_size": 8,
}

# Facts of a training run, for a model card.
FACTS = {
    "name": "tiny",
    "num_parameters": 49000,
    "stages": {
        "finetune": {
            "objective": "hawaii",
            "samples": 12,
            "epochs": 1.0,
            "steps": 6,
            "batch_size": 2,
            "learning_rate": 1e-3,
            "seconds": 0.5,
            "teachers": {"vit": {"image_size": 16, "grid": [4, 4, 16]}},
            "hardware": [
                {"first_step": 1, "devices": {"NVIDIA H200": 8}, "software": {"python": "3.11.7", "torch": "2.13.0"}},
                {"first_step": 4, "devices": {"NVIDIA A100": 4}, "software": {"python": "3.11.7", "torch": "2.14.0"}},
            ],
        }
    },
    "card": {
        "license": {"license": "llama2", "license_name": None, "license_link": None},
        "language": ["en", "de"],
        "datasets": [
            {
                "name": "owner/data",
                "repository": "owner/data",
                "license": "cc-by-4.0",
                "url": "https://huggingface.co/datasets/owner/data",
            },
            {"name": "easy-VQA", "repository": None, "license": None, "url": None},
        ],
        "base_model": ["openai/clip", "lmsys/vicuna"],
        "models": {
            "encoder": {
                "name": "openai/clip",
                "repositories": ["openai/clip"],
                "license": {"identifier": "mit", "name": None, "link": None},
            },
            "language model": None,
        },
        "teachers": {
            "vit": {
                "name": "my_vit",
                "repositories": ["owner/vit"],
                "license": {"identifier": "other", "name": "my-license", "link": "https://example.org/license"},
            },
            "unused": {"name": "unused", "repositories": [], "license": None},
        },
    },
}


# LLaVA-NeXT's grids, of tiles of 16 pixels.
PINPOINTS = [[16, 32], [32, 16], [32, 32], [48, 16], [16, 48]]


def make_tokenizer(words: Sequence[str] = WORDS) -> PreTrainedTokenizerFast:
    """A word-level tokenizer with every special token that a conversation needs."""
    special = ["<pad>", "<unk>", "<s>", "</s>", "<image>"]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys([*special, *words]))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<image>"],
    )


def make_processor(
    image_size: int = 16,
    patch_size: int = 4,
    chat_template: str = "vicuna_v1",
    image_grid_pinpoints: Sequence[Sequence[int]] | None = None,
    **kwargs,
) -> HawaiiProcessor:
    size = {"height": image_size, "width": image_size}
    image_processor = CLIPImageProcessor(size=size, crop_size=size)
    if image_grid_pinpoints is not None:
        image_processor = HawaiiImageProcessor(size=size, crop_size=size, image_grid_pinpoints=image_grid_pinpoints)
    return HawaiiProcessor(
        image_processor=image_processor,
        tokenizer=make_tokenizer(),
        patch_size=patch_size,
        chat_template=load_chat_template(chat_template),
        **kwargs,
    )


def make_config(vision: dict | None = None, text: dict | None = None, **fields) -> HawaiiConfig:
    """Configuration of a complete model of about 30,000 parameters."""
    tokenizer = make_tokenizer()
    text_config = {
        "model_type": "llama",
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "tie_word_embeddings": False,
    }
    return HawaiiConfig(
        vision_config={**VISION, **(vision or {})},
        text_config={**text_config, **(text or {})},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        **fields,
    )


def fill(model: nn.Module) -> nn.Module:
    """
    Gives the parameters that are zero in a new model random values, including adapters, and enlarges the others so
    that tokens are routed differently and images get different answers.
    """
    for name, parameter in model.named_parameters():
        if "adapters.up" in name or "bias" in name:
            nn.init.normal_(parameter, std=0.2)
        elif parameter.dim() > 1 and re.search("_router|projector|language_model|lm_head", name):
            nn.init.normal_(parameter, std=0.5)
    return model.eval()


def draw_weights(model: nn.Module) -> nn.Module:
    """Gives an encoder biases and norms that are not zeros and ones."""
    for name, parameter in model.named_parameters():
        is_scale = "norm" in name and name.endswith("weight")
        nn.init.normal_(parameter, mean=1.0 if is_scale else 0.0, std=0.1)
    return model.eval()


def make_model(**kwargs) -> HawaiiForConditionalGeneration:
    """A complete model with random values; arguments as for [`make_config`]."""
    return fill(HawaiiForConditionalGeneration(make_config(**kwargs)))


def save_hub_folder(folder: Path, seed: int = 0) -> Path:
    """A published folder with random weights, adapters included, saved through `save_pretrained`."""
    torch.manual_seed(seed)
    make_model().save_pretrained(folder)
    make_processor().save_pretrained(folder)
    return folder


def save_tiled_folder(folder: Path) -> Path:
    """A published folder of a model with random weights and the tiles of `PINPOINTS`."""
    make_model(image_grid_pinpoints=PINPOINTS, text={"max_position_embeddings": 1024}).save_pretrained(folder)
    make_processor(image_grid_pinpoints=PINPOINTS).save_pretrained(folder)
    return folder
