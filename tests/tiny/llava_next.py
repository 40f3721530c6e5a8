"""Saves small LLaVA-NeXT checkpoints with the files that those of the Hub have, in transformers 4's form."""

import json
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from .language_models import FAMILIES, make_tokenizer, text_config
from .llava import CLIP, PINPOINTS, make_llava_next, save_as_transformers_4


MEAN, STD = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]

_CONTENT = (
    "{% for item in turn['content'] if item['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for item in turn['content'] if item['type'] == 'text' %}{{ item['text'] }}{% endfor %}"
)
_CHATML = (
    "{% for turn in messages %}{{ '<|im_start|>' + turn['role'] + '\n' }}" + _CONTENT + "{{ '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_HEADERS = (
    "{% for turn in messages %}{{ '<|start_header_id|>' + turn['role'] + '<|end_header_id|>\n\n' }}" + _CONTENT + ""
    "{{ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
_INSTRUCTION = (
    "{% for turn in messages %}{% if turn['role'] == 'user' %}{{ '[INST] ' }}" + _CONTENT + "{{ ' [/INST]' }}"
    "{% else %}" + _CONTENT + "{{ '</s>' }}{% endif %}{% endfor %}"
)
# The chat template of a processor, by the family of its language model.
TEMPLATES = {"llama3": _HEADERS, "mistral": _INSTRUCTION, "qwen2": _CHATML}


def write_json(path: Path, values: dict) -> None:
    path.write_text(json.dumps(values))


def save_processor(folder: Path, tokenizer: PreTrainedTokenizerFast, template: str, **fields) -> None:
    """Writes the files of a `LlavaNextProcessor`; `fields` override those of its image processor."""
    tokenizer.save_pretrained(folder)
    values = json.loads((folder / "tokenizer_config.json").read_text())
    # Names that both versions of transformers know.
    values["tokenizer_class"] = "PreTrainedTokenizerFast"
    values["additional_special_tokens"] = values.pop("extra_special_tokens", [])
    values["model_input_names"] = ["input_ids", "attention_mask"]
    write_json(folder / "tokenizer_config.json", values)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    write_json(folder / "chat_template.json", {"chat_template": template})
    side = CLIP["image_size"]
    image_processor = {
        "image_processor_type": "LlavaNextImageProcessor",
        "processor_class": "LlavaNextProcessor",
        "aspect_ratio_setting": "anyres",
        "image_grid_pinpoints": PINPOINTS,
        "size": {"shortest_edge": side},
        "crop_size": {"height": side, "width": side},
        "image_mean": MEAN,
        "image_std": STD,
        "resample": 3,
        **fields,
    }
    write_json(folder / "preprocessor_config.json", image_processor)
    processor = {
        "processor_class": "LlavaNextProcessor",
        "image_token": "<image>",
        "patch_size": CLIP["patch_size"],
        "num_additional_image_tokens": 1,
        "vision_feature_select_strategy": "default",
    }
    write_json(folder / "processor_config.json", processor)


def save_llava_next(folder: Path, family_name: str = "llama3", **fields) -> Path:
    """
    Saves a LLaVA-NeXT whose vocabulary has a token for images after those of its language model, and rows to spare.

    Args:
        folder (`Path`):
            New folder.
        family_name (`str`, *optional*, defaults to `"llama3"`):
            Family of the language model.
        fields:
            Fields of the configuration.
    """
    family = FAMILIES[family_name]
    tokenizer = make_tokenizer(family)
    tokenizer.chat_template = None
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]}, replace_extra_special_tokens=False)
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = text_config(family, max_position_embeddings=1024, vocab_size=320, **ids)
    if "sliding_window" in text:
        text["sliding_window"] = 64
    torch.manual_seed(0)
    llava = make_llava_next(
        text=text | fields.pop("text", {}), image_token_index=tokenizer.convert_tokens_to_ids("<image>"), **fields
    )
    folder.mkdir(parents=True)
    save_as_transformers_4(llava, folder, num_files=2)
    llava.generation_config.save_pretrained(folder)
    save_processor(folder, tokenizer, TEMPLATES[family_name])
    return folder
