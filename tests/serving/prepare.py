"""
Makes the folders that `make serve-check` serves, 50 questions for each, and transformers' greedy answers.

    python -m hawaii.tests.serving.prepare OUTPUT [RUN] [--only WORD]

RUN is a finished run of the demo; its folder is served as well. With WORD, only folders with this word in their names
are made. vLLM needs no file of this package: what it is asked is in OUTPUT.
"""

import argparse
import dataclasses
import json
import shutil
import sys
from itertools import product
from pathlib import Path

import torch
import transformers
from jinja2 import TemplateError
from PIL import Image, ImageDraw

from hawaii import HawaiiConfig, HawaiiForConditionalGeneration, HawaiiProcessor
from hawaii.processing.image_processing_hawaii import HawaiiImageProcessor
from hawaii.tests.tiny.language_models import FAMILIES, save_language_model
from hawaii.tests.tiny.models import PINPOINTS, VISION, fill, make_model, make_processor
from hawaii.training.recipes.arguments import DataArguments, ModelArguments
from hawaii.training.students.student import build_student


NUM_QUESTIONS, NUM_NEW_TOKENS = 50, 12
# A question counts if each of its answer's tokens is ahead of the second best by this much, in logits. Implementations
# differ by up to 5e-4, so with a much smaller margin an answer is a matter of rounding.
CLEAR_MARGIN = 5e-3
MARK = "made_by_serve_check"  # a file in the output, which the next check may delete

# vLLM's attention on a CPU needs heads of 32 or more.
TEXT = {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 4, "max_position_embeddings": 1024}
SIGLIP = {"has_class_token": False, "has_pre_layer_norm": False, "has_patch_bias": True}
SIGLIP["hidden_act"] = "gelu_pytorch_tanh"
LINEAR = {"adapter_placement": "linear", "lora_bias": True, "router_hidden_size": None}
# Up to 3 x 3 tiles of 18 pixels, of which 4 x 4 patches show 16.
MORE_PINPOINTS = [[18 * rows, 18 * columns] for rows, columns in product((1, 2, 3), repeat=2)]
SIZES = [(64, 64), (96, 40), (30, 77), (16, 16), (200, 150), (9, 120)]
# Tiny, wide and huge ones, which only models with tiles are asked about.
EXTREME_SIZES = [(1, 1), (400, 30), (1600, 1100)]


def save(model: HawaiiForConditionalGeneration, processor: HawaiiProcessor, folder: Path, **kwargs) -> None:
    model.eval().save_pretrained(folder, **kwargs)
    processor.save_pretrained(folder)


def save_llama(folder: Path, kv_heads: int = 4, vision=None, is_tied=False, shards: str = "1GB", **kwargs) -> None:
    text = {**TEXT, "num_hidden_layers": 3, "num_key_value_heads": kv_heads, "tie_word_embeddings": is_tied}
    model = make_model(vision=vision, text=text, **kwargs)
    save(model, make_processor(model.config.vision_config.image_size), folder, max_shard_size=shards)


def save_tiles(folder: Path, function, pinpoints: list[list[int]], **kwargs) -> None:
    """The folder of another function, whose model is given tiles."""
    function(folder, **kwargs)
    square, processor = HawaiiForConditionalGeneration.from_pretrained(folder), HawaiiProcessor.from_pretrained(folder)
    model = HawaiiForConditionalGeneration(
        HawaiiConfig(**{**square.config.to_dict(), "image_grid_pinpoints": pinpoints})
    )
    newline = torch.randn(model.model.image_newline.shape) / 2
    model.load_state_dict({**square.state_dict(), "model.image_newline": newline})
    values = {**processor.image_processor.to_dict(), "image_grid_pinpoints": pinpoints}
    processor.image_processor = HawaiiImageProcessor.from_dict(values)
    save(model, processor, folder)


@torch.no_grad()
def untie(model: HawaiiForConditionalGeneration) -> HawaiiForConditionalGeneration:
    model.config.tie_word_embeddings = False
    head = torch.nn.Linear(model.lm_head.in_features, model.lm_head.out_features, bias=False)
    torch.nn.init.normal_(head.weight, std=0.5)
    model.set_output_embeddings(head)
    return model


def save_family(folder: Path, name: str, is_tied: bool, vision=None, scale: float = 1.0) -> None:
    """Joins a language model of a family to a new encoder, as a recipe does."""
    family = FAMILIES[name]
    fields = {"head_dim": 32, "sliding_window": 24}
    family = dataclasses.replace(
        family, fields=family.fields | {key: fields[key] for key in fields.keys() & family.fields.keys()}
    )
    starts_tied = is_tied or family.can_be_tied == (True,)
    save_language_model(folder / "language_model", family, **TEXT, tie_word_embeddings=starts_tied)
    student, processor = build_student(
        ModelArguments(language_model=str(folder / "language_model"), vision_config={**VISION, **(vision or {})}),
        DataArguments(data_path="unread", image_folder="unread"),
        num_teachers=2,
    )
    shutil.rmtree(folder / "language_model")
    language_model = student.model.language_model.state_dict()
    language_model = {key: value.clone() for key, value in language_model.items()}
    fill(student).model.language_model.load_state_dict(language_model)
    with torch.no_grad():
        # Gemma multiplies its embeddings: with large ones it would repeat its input.
        student.get_input_embeddings().weight.mul_(scale)
    save(untie(student) if starts_tied and not is_tied else student, processor, folder)


FOLDERS = {
    "llama_untied": (save_llama, {}),
    "llama_gqa_untied": (save_llama, {"kv_heads": 2}),
    "llama_gqa_tied": (save_llama, {"kv_heads": 2, "is_tied": True}),
    "llama_sharded": (save_llama, {"shards": "200KB"}),
    "siglip_untied": (save_llama, {"vision": SIGLIP}),
    "linear_adapters": (save_llama, {"vision": LINEAR}),
    "biased_head": (save_llama, {"head_bias": True}),
    "gemma3_tied": (save_family, {"name": "gemma3", "is_tied": True, "scale": 0.1}),
    "gemma3_siglip_untied": (save_family, {"name": "gemma3", "is_tied": False, "scale": 0.1, "vision": SIGLIP}),
    "qwen2_tied": (save_family, {"name": "qwen2", "is_tied": True}),
    "qwen2_untied": (save_family, {"name": "qwen2", "is_tied": False}),
    "qwen3_siglip_tied": (save_family, {"name": "qwen3", "is_tied": True, "vision": SIGLIP}),
    "qwen3_untied": (save_family, {"name": "qwen3", "is_tied": False}),
    "llama_tiles": (save_tiles, {"function": save_llama, "pinpoints": PINPOINTS, "kv_heads": 2}),
    "siglip_tiles": (
        save_tiles,
        {"function": save_llama, "pinpoints": MORE_PINPOINTS, "vision": {**SIGLIP, "image_size": 18}},
    ),
    "qwen2_tied_tiles": (
        save_tiles,
        {"function": save_family, "pinpoints": PINPOINTS, "name": "qwen2", "is_tied": True},
    ),
}


def save_demo(run: Path, folders: Path) -> None:
    """The demo's folder as it is, and with a head of its own."""
    shutil.copytree(run / "hub", folders / "demo")
    model = HawaiiForConditionalGeneration.from_pretrained(folders / "demo")
    save(untie(model), HawaiiProcessor.from_pretrained(folders / "demo"), folders / "demo_untied")


def draw_images(folder: Path, sizes: list[tuple[int, int]]) -> list[str]:
    """Images of many sizes, modes and formats."""
    folder.mkdir()
    kinds = [
        ("RGB", "png"),
        ("L", "png"),
        ("P", "gif"),
        ("RGBA", "png"),
        ("CMYK", "jpg"),
        ("1", "png"),
        ("RGB", "jpg"),
    ]
    paths = []
    for index, (color, size) in enumerate(product(("red", "blue", "green", "gray"), sizes)):
        width, height = size
        image = Image.effect_noise(size, 120).convert("RGB") if index % 3 else Image.new("RGB", size, "white")
        draw = [ImageDraw.Draw(image).ellipse, ImageDraw.Draw(image).rectangle][index % 2]
        draw((min(2, width * 0.7), min(2, height * 0.8), width * 0.7, height * 0.8), fill=color)
        mode, suffix = kinds[index % len(kinds)]
        exif = image.getexif()
        if index == 6:
            exif[0x0112] = 6  # turned by a quarter
        paths.append(str(folder / f"{index}.{suffix}"))
        image.convert(mode).save(paths[-1], **({"exif": exif} if suffix == "jpg" else {}))
    return paths


def make_questions(images: list[str]) -> list[list[dict]]:
    """Conversations about no image, one or several; some with a system's text, a first turn, or text around images."""
    asked = ["what color is the {1} ?", "is there a {0} {1} in the image ?", "is the {1} {0} ?", "a {0} or blue {1} ?"]
    asked += ["what shape is {0} ?", "yes or no : a {1} ?"]
    texts = [text.format(*words) for words in product(("red", "blue"), ("circle", "square")) for text in asked]
    numbers = [1, 0, 1, 2, 1, 3, 1, 0, 1, 2, 1]
    conversations = []
    for index in range(3 * NUM_QUESTIONS):
        number = numbers[index % len(numbers)]
        is_repeated = index % 10 == 6  # the same image several times
        chosen = [images[(index * 5 + 7 * k * (not is_repeated)) % len(images)] for k in range(number)]
        items = [{"type": "image", "image": path} for path in chosen]
        content = [*items, {"type": "text", "text": texts[(index * 7 + index // 24) % len(texts)]}]
        if index % 10 == 3 and number > 1:
            content = [items[0], {"type": "text", "text": "is it red ? "}, *items[1:], content[-1]]
        messages = [{"role": "user", "content": content}]
        if index % 10 == 4:
            answer = {"role": "assistant", "content": [{"type": "text", "text": "a red circle"}]}
            messages += [answer, {"role": "user", "content": [{"type": "text", "text": "and in the image ?"}]}]
        if index % 10 == 5:
            system = {"role": "system", "content": [{"type": "text", "text": "helpful answers to the user ."}]}
            messages = [system, *messages]
        conversations.append(messages)
    return conversations


def answer(model: HawaiiForConditionalGeneration, processor: HawaiiProcessor, messages: list[dict]) -> dict:
    """A question's prompt and its greedy answer: of a fixed length, and up to the end token."""
    options = {"add_generation_prompt": True}
    try:
        prompt = processor.apply_chat_template(messages, **options)
    except TemplateError:  # of a language model without system turns
        messages = messages[1:]
        prompt = processor.apply_chat_template(messages, **options)
    inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt", **options)
    length = inputs["input_ids"].shape[1]
    greedy = {"do_sample": False, "max_new_tokens": NUM_NEW_TOKENS}
    ended = model.generate(**inputs, **greedy)[0, length:].tolist()
    eos_token_id, model.generation_config.eos_token_id = model.generation_config.eos_token_id, None
    outputs = model.generate(**inputs, **greedy, return_dict_in_generate=True, output_logits=True)
    model.generation_config.eos_token_id = eos_token_id
    logits = torch.cat(outputs.logits).float()
    return {
        "messages": messages,
        "prompt": prompt,
        "prompt_ids": inputs["input_ids"][0].tolist(),
        "tokens": outputs.sequences[0, length:].tolist(),
        "ended": ended,
        "margin": float(-logits.topk(2).values.diff().max()),
        "first_logprobs": logits[0].log_softmax(-1).tolist(),
    }


@torch.no_grad()
def answer_questions(folder: Path, conversations: list[list[dict]]) -> dict:
    """
    The first 50 questions whose answers are clear.

    Raises:
        RuntimeError: there are fewer.
    """
    model = HawaiiForConditionalGeneration.from_pretrained(folder).eval()
    processor = HawaiiProcessor.from_pretrained(folder)
    clear, num_unclear = [], 0
    for messages in conversations:
        answered = answer(model, processor, messages)
        if answered["margin"] < CLEAR_MARGIN:
            num_unclear += 1
            continue
        clear.append(answered)
        if len(clear) == NUM_QUESTIONS:
            return {"transformers": transformers.__version__, "num_unclear": num_unclear, "questions": clear}
    raise RuntimeError(f"Only {len(clear)} questions of {len(conversations)} have clear answers in {folder}.")


def draw_unusual_images(folder: Path) -> list[str]:
    """An image with opacity and one of 16 bits."""
    transparent = Image.effect_noise((40, 40), 90).convert("RGB")
    transparent.putalpha(Image.linear_gradient("L").resize((40, 40)))
    transparent.save(folder / "transparent.png")
    values = (torch.arange(40 * 40) * 40).to(torch.uint16).view(40, 40)
    Image.fromarray(values.numpy()).save(folder / "16_bits.png")
    return [str(folder / "transparent.png"), str(folder / "16_bits.png")]


def clear(output: Path) -> None:
    """
    Empties the folder of an earlier check, or makes it.

    Raises:
        SystemExit: it contains something else.
    """
    if output.is_dir() and any(output.iterdir()) and not (output / MARK).is_file():
        sys.exit(f"{output} has other files than those of this check, which would be deleted: name another folder.")
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    (output / MARK).touch()


def save_folders(folders: Path, run: Path | None, word: str = "") -> None:
    """All folders to serve, or those with a word in their names."""
    for name, (function, kwargs) in FOLDERS.items():
        if word in name:
            torch.manual_seed(0)
            function(folders / name, **kwargs)
    if word not in "demo_untied":
        return
    if run is not None and (run / "hub").is_dir():
        save_demo(run, folders)
    else:
        place = "no run is named" if run is None else f"there is no {run / 'hub'}; `make demo` makes it"
        print(f"The folders demo and demo_untied are left out: {place}.", flush=True)


def main(output: Path, run: Path | None, word: str) -> None:
    clear(output)
    (output / "folders").mkdir()
    (output / "references").mkdir()
    torch.manual_seed(0)
    conversations = make_questions(draw_images(output / "images", SIZES))
    of_tiles = make_questions(draw_images(output / "images_of_many_shapes", SIZES + EXTREME_SIZES))
    unusual = [messages for messages in make_questions(draw_unusual_images(output / "images")) if len(messages) == 1]
    save_folders(output / "folders", run, word)
    if (output / "folders" / "llama_untied").is_dir():
        unusual_answers = answer_questions(output / "folders" / "llama_untied", unusual)
        (output / "unusual.json").write_text(json.dumps(unusual_answers))
    for folder in sorted((output / "folders").iterdir()):
        has_tiles = HawaiiConfig.from_pretrained(folder).image_grid_pinpoints is not None
        answers = answer_questions(folder, of_tiles if has_tiles else conversations)
        (output / "references" / f"{folder.name}.json").write_text(json.dumps(answers))
        different = len({tuple(question["tokens"]) for question in answers["questions"]})
        print(f"{folder.name}: {different} different answers, {answers['num_unclear']} unclear", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--only", metavar="WORD", default="")
    arguments = parser.parse_args()
    main(arguments.output, arguments.run, arguments.only)
