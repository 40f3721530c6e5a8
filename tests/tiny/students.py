"""Students built from tiny parts as for a recipe."""

from pathlib import Path

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, LlavaForConditionalGeneration

from hawaii import HawaiiForConditionalGeneration, HawaiiProcessor
from hawaii.processing.chat_templates import load_chat_template
from hawaii.training.recipes.arguments import DataArguments, ModelArguments
from hawaii.training.students.student import build_student

from .llava import make_llava, save_clip, save_original
from .models import VISION, fill, make_tokenizer
from .training import TEXT, save_image_processor


CLIP = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 4,
}


def save_clip_folder(folder: Path) -> str:
    """Saves a CLIP with its own normalisation of images."""
    torch.manual_seed(0)
    fill(CLIPVisionModel(CLIPVisionConfig(**CLIP))).save_pretrained(folder)
    save_image_processor(folder, 16, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6])
    return str(folder)


def text_tokenizer():
    """Makes a tokenizer without an image token."""
    tokenizer = make_tokenizer()
    backend = tokenizer.backend_tokenizer.to_str().replace("<image>", "picture")
    tokenizer = type(tokenizer)(
        tokenizer_object=type(tokenizer.backend_tokenizer).from_str(backend), eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.chat_template = load_chat_template("vicuna_v1")
    return tokenizer


def save_llava(folder: Path, is_original: bool = False) -> tuple[LlavaForConditionalGeneration, str]:
    """Saves a LLaVA with the tiny tokenizer's vocabulary, in transformers' or the original format."""
    tokenizer = make_tokenizer() if not is_original else text_tokenizer()
    llava = make_llava(text={"vocab_size": len(tokenizer)})
    folder.mkdir()
    if is_original:
        tower = save_clip(folder / "clip", llava)
        save_image_processor(tower, 16, image_mean=[0.1, 0.2, 0.3])
        save_original(llava, folder / "llava", tower)
    else:
        llava.config.image_token_index = tokenizer.vocab["<image>"]
        llava.save_pretrained(folder / "llava")
        save_image_processor(folder / "llava", 16, image_mean=[0.1, 0.2, 0.3])
    tokenizer.save_pretrained(folder / "llava")
    return llava, str(folder / "llava")


def data_args(**kwargs) -> DataArguments:
    return DataArguments(**{"data_path": "x", "image_folder": "x", **kwargs})


def build_from_scratch(tokenizer_folder: str, **kwargs) -> tuple[HawaiiForConditionalGeneration, HawaiiProcessor]:
    """`kwargs` are other [`ModelArguments`]."""
    fields = {"vision_config": VISION, "text_config": TEXT, "tokenizer": tokenizer_folder, **kwargs}
    return build_student(ModelArguments(**fields), data_args(), num_teachers=2)
