"""
Finds out why a model does not read the words in EmojiVQA's pictures: whether they are in the features of its encoder,
and whether its answers name them. For the first, a small network learns to name the word of each training picture from
the map of its features, and is tested on the validation pictures.

    python benchmarks/reading.py runs/emoji_vqa/data runs/emoji_vqa/hub runs/emoji_vqa_tiles/hub \
        --expert runs/emoji_vqa/experts/regnet
"""

import argparse
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from hawaii import HawaiiForConditionalGeneration, HawaiiProcessor
from hawaii.processing.images_hawaii import open_image
from hawaii.training.data.reader import teacher_image
from hawaii.training.teachers.config import TeacherConfig
from hawaii.training.teachers.loading import load_teachers


QUESTION = "what word is written?"
BATCH = 64
EPOCHS = 15


def read_words(data: Path, name: str) -> tuple[list[Image.Image], list[str]]:
    """The pictures with a word of a data file, and their words."""
    images, words = [], []
    for record in json.loads((data / name).read_text(encoding="utf-8")):
        turns = record["conversations"]
        for question, answer in zip(turns, turns[1:]):
            if QUESTION in question["value"]:
                images.append(open_image(data / "images" / record["image"]))
                words.append(answer["value"])
    return images, words


def encode(model: Any, processor: HawaiiProcessor, images: Sequence[Image.Image]) -> torch.Tensor:
    """Features of the encoder of a model as a map of each picture, `(num_images, height, width, hidden_size)`."""
    inputs = processor.image_processor(images, return_tensors="pt")
    tower = model.model.vision_tower
    patches = tower(inputs["pixel_values"]).last_hidden_state[:, tower.config.num_prefix_tokens :]
    return torch.stack(processor.image_processor.assemble_maps(patches, inputs.get("image_sizes")))


def encode_with_expert(expert: Any, images: Sequence[Image.Image]) -> torch.Tensor:
    """Features of an expert, which sees whole pictures, `(num_images, height, width, channels)`."""
    return expert(torch.stack([teacher_image(image, expert.image_size) for image in images])).float()


def answer(model: Any, processor: HawaiiProcessor, images: Sequence[Image.Image]) -> list[str]:
    """The model's answers to the question for the word."""
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(images=list(images), text=[prompt] * len(images), return_tensors="pt", padding=True)
    tokens = model.generate(**inputs, max_new_tokens=4, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)]


def in_batches(function: Callable, images: Sequence[Image.Image]) -> list:
    return [function(images[start : start + BATCH]) for start in range(0, len(images), BATCH)]


class WordProbe(nn.Module):
    """Names the word in a map of features: two layers over patches, one over rows of patches, the largest score."""

    def __init__(self, maps: torch.Tensor, num_words: int):
        super().__init__()
        self.std, self.mean = torch.std_mean(maps, dim=(0, 1, 2))
        width = min(6, maps.shape[2])
        self.layers = nn.Sequential(
            nn.Conv2d(maps.shape[-1], 64, 1),
            nn.GELU(),
            nn.Conv2d(64, 128, (2, width), padding=(1, width // 2)),
            nn.GELU(),
            nn.Conv2d(128, num_words, 1),
        )

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """From `(num_images, height, width, channels)` to scores `(num_images, num_words)`."""
        return self.layers(((maps - self.mean) / (self.std + 1e-5)).permute(0, 3, 1, 2)).amax(dim=(2, 3))


def read_with_probe(maps: dict[str, torch.Tensor], words: dict[str, list[str]]) -> float:
    """Share of the validation words that a network reads that learns from the training pictures."""
    known = sorted(set(words["finetune.json"]))
    labels = torch.tensor([known.index(word) for word in words["finetune.json"]])
    training = maps["finetune.json"]
    with torch.enable_grad():
        torch.manual_seed(0)
        probe = WordProbe(training, len(known))
        optimizer = torch.optim.AdamW(probe.parameters(), lr=2e-3, weight_decay=0.05)
        for batch in (batch for _ in range(EPOCHS) for batch in torch.randperm(len(training)).split(BATCH)):
            loss = F.cross_entropy(probe(training[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    found = [known[index] for index in probe(maps["validation.json"]).argmax(dim=1).tolist()]
    return share_of_equal(found, words["validation.json"])


def share_of_equal(found: Sequence[str], expected: Sequence[str]) -> float:
    return sum(map(str.__eq__, found, expected)) / len(expected)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA", help="folder of EmojiVQA's data files")
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="published models")
    parser.add_argument("--expert", metavar="FOLDER", help="an expert, whose features are read as well")
    arguments = parser.parse_args()

    images, words = {}, {}
    for name in ("finetune.json", "validation.json"):
        images[name], words[name] = read_words(arguments.data, name)
    print(f"{len(words['finetune.json'])} training pictures with a word, {len(words['validation.json'])} others")
    if arguments.expert is not None:
        (expert,) = load_teachers([TeacherConfig(arguments.expert)])
        maps = {name: torch.cat(in_batches(partial(encode_with_expert, expert), images[name])) for name in images}
        print(f"{arguments.expert}: {read_with_probe(maps, words):.1%} of the others are in its features", flush=True)
    for folder in arguments.folders:
        model = HawaiiForConditionalGeneration.from_pretrained(folder)
        processor = HawaiiProcessor.from_pretrained(folder)
        maps = {name: torch.cat(in_batches(partial(encode, model, processor), images[name])) for name in images}
        shares = {}
        for name in images:
            answers = in_batches(partial(answer, model, processor), images[name])
            shares[name] = share_of_equal([text for batch in answers for text in batch], words[name])
        print(
            f"{folder}: {read_with_probe(maps, words):.1%} of the others are in its features; it answers "
            f"{shares['validation.json']:.1%} of them and {shares['finetune.json']:.1%} of the training pictures",
            flush=True,
        )


if __name__ == "__main__":
    main()
