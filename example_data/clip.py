"""A small CLIP that learns by contrast from the training pictures of a data set and their captions."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    PreTrainedTokenizerFast,
    set_seed,
)

from ..files.atomic import atomic_folder, write_json
from ..files.digest import digest
from ..files.user_error import UserError
from .experts import held_out
from .reports import read_report
from .training import train
from .word_tokenizer import build_tokenizer, save_tokenizer


REPORT_FILE = "clip.json"
IMAGE_SIZE = 32  # pixels; the pictures and the experts' images have 64
MAX_SHIFT = 3  # pixels
WORD = "word "  # precedes, in a caption, what is written in the picture
# Without its last layer, whose features no student uses, the vision tower has the sizes of the recipe easy_vqa.
VISION_CONFIG = {
    "image_size": IMAGE_SIZE,
    "patch_size": 8,
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "hidden_act": "gelu",
}
TEXT_CONFIG = {
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "hidden_act": "gelu",
}
PROJECTION_SIZE = 128
NUM_STEPS = 800
# All training arguments except the number of steps.
SETTINGS = {
    "per_device_train_batch_size": 384,  # with few, one thing of a picture is enough to find its caption
    "learning_rate": 1.5e-3,
    "adam_beta2": 0.98,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.05,
    "weight_decay": 0.1,
    "seed": 0,
}


class CaptionedPictures(torch.utils.data.Dataset):
    """
    Pictures with their captions, as a CLIP reads them.

    Args:
        pixels (`torch.FloatTensor` of shape `(num_pictures, 3, IMAGE_SIZE, IMAGE_SIZE)`):
            Normalised pictures.
        captions (`Sequence[str]`):
            Caption of each.
        tokenizer (`PreTrainedTokenizerFast`):
            Tokenizer of the captions.
        is_augmented (`bool`):
            Whether pictures are shifted by up to `MAX_SHIFT` pixels, repeating their border, and those without a word
            (`WORD` in the caption) mirrored with a probability of one half.
    """

    def __init__(self, pixels, captions: Sequence[str], tokenizer: PreTrainedTokenizerFast, is_augmented: bool):
        self.pixels, self.captions, self.tokenizer, self.is_augmented = pixels, captions, tokenizer, is_augmented

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, str]:
        pixels, caption = self.pixels[index], self.captions[index]
        if self.is_augmented:
            down, across = torch.randint(2 * MAX_SHIFT + 1, (2,)).tolist()
            padded = F.pad(pixels[None], [MAX_SHIFT] * 4, mode="replicate")[0]
            pixels = padded[:, down : down + IMAGE_SIZE, across : across + IMAGE_SIZE]
            if WORD not in caption and torch.rand(()) < 0.5:
                pixels = pixels.flip(-1)
        return pixels, caption

    def collate(self, pairs: Sequence[tuple[torch.Tensor, str]]) -> dict[str, torch.Tensor]:
        """Makes a batch. The label of a picture is the place of its caption, the first one if several are equal."""
        pixels, captions = zip(*pairs)
        texts = [caption + self.tokenizer.eos_token for caption in captions]  # CLIP reads a text at its end
        tokens = self.tokenizer(texts, padding=True, return_tensors="pt")
        return {
            "pixel_values": torch.stack(pixels),
            "labels": torch.tensor([captions.index(caption) for caption in captions]),
            **tokens,
        }


class ContrastiveClip(nn.Module):
    """
    A CLIP that returns its contrastive loss and, for each picture of a batch, the similarity to each caption; of equal
    captions to the first.
    """

    def __init__(self, clip: CLIPModel):
        super().__init__()
        self.clip = clip

    def forward(self, pixel_values, input_ids, attention_mask, labels):
        output = self.clip(input_ids, pixel_values, attention_mask, return_loss=True)
        is_repeated = labels != torch.arange(len(labels), device=labels.device)
        return {"loss": output.loss, "logits": output.logits_per_image.masked_fill(is_repeated, -torch.inf)}


def make_image_processor() -> CLIPImageProcessorPil:
    """Returns CLIP's image processor for small squares."""
    return CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    )


def train_clip(
    pixels: torch.Tensor, captions: Sequence[str], tokenizer: PreTrainedTokenizerFast, num_steps: int
) -> tuple[CLIPModel, float]:
    """
    Trains a CLIP from random weights.

    Args:
        pixels, captions, tokenizer:
            As for [`CaptionedPictures`]; the last tenth is held out.
        num_steps (`int`):
            Number of steps.

    Returns:
        The model in eval mode on the CPU, and the share of held-out pictures to whose own caption it is most similar,
        of 64.
    """
    with torch.random.fork_rng(devices=[]):
        set_seed(SETTINGS["seed"])
        ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
        config = CLIPConfig(
            text_config={**TEXT_CONFIG, **ids, "vocab_size": len(tokenizer), "projection_dim": PROJECTION_SIZE},
            vision_config={**VISION_CONFIG, "projection_dim": PROJECTION_SIZE},
            projection_dim=PROJECTION_SIZE,
        )
        clip = CLIPModel(config)
        is_held_out = held_out(len(pixels)).tolist()
        learned, checked = (
            CaptionedPictures(
                pixels[torch.tensor(is_held_out) != is_learned],
                [caption for caption, held in zip(captions, is_held_out) if held != is_learned],
                tokenizer,
                is_learned,
            )
            for is_learned in (True, False)
        )
        accuracy = train(
            ContrastiveClip(clip),
            learned,
            checked,
            num_steps,
            SETTINGS,
            predict=lambda logits, labels: logits.argmax(dim=-1),
            data_collator=learned.collate,
        )
    return clip, accuracy


def _summary(report: dict) -> str:
    accuracy, num_steps = report["validation_accuracy"], report["num_steps"]
    return f"finds the caption of {accuracy:.1%} of held-out pictures among 64 after {num_steps} steps"


def prepare_clip(pictures: Sequence[Path], captions: Sequence[str], folder: Path, num_steps: int) -> None:
    """
    Trains a CLIP, unless the folder has it already, and saves it with its tokenizer and image processor.

    Args:
        pictures (`Sequence[Path]`):
            Files of the pictures.
        captions (`Sequence[str]`):
            Caption of each.
        folder (`Path`):
            Folder of the model.
        num_steps (`int`):
            Number of steps.
    """
    image_processor, tokenizer = make_image_processor(), build_tokenizer(captions)
    images = [Image.open(path).convert("RGB") for path in pictures]
    pixels = image_processor(images, return_tensors="pt")["pixel_values"]
    wanted = {
        "vision_config": VISION_CONFIG,
        "text_config": TEXT_CONFIG,
        "settings": SETTINGS,
        "num_steps": num_steps,
        "data": digest(pixels.numpy().tobytes() + "\n".join(captions).encode()),
    }
    report = read_report(folder / REPORT_FILE, wanted)
    if report is not None:
        print(f"The CLIP already exists: it {_summary(report)}.")
        return
    start = time.monotonic()
    print("Training the CLIP", flush=True)
    with atomic_folder(folder) as temporary:
        clip, accuracy = train_clip(pixels, captions, tokenizer, num_steps)
        report = {**wanted, "validation_accuracy": round(accuracy, 4)}
        clip.save_pretrained(temporary)
        image_processor.save_pretrained(temporary)
        save_tokenizer(tokenizer, temporary)
        write_json(temporary / REPORT_FILE, report)
    print(f"CLIP: it {_summary(report)} in {time.monotonic() - start:.0f} s, in {folder}.")


def read_captions(output_dir: Path, command: str) -> tuple[list[Path], list[str]]:
    """
    Returns the files of the training pictures of a data set, and the caption of each.

    Args:
        output_dir (`Path`):
            Folder of the data set.
        command (`str`):
            Command that makes the data set, for the error.

    Raises:
        UserError: the folder has no such data set.
    """
    path = output_dir / "data" / "pretrain.json"
    if not path.is_file():
        raise UserError(f"{path} is missing: make it with `{command} --output_dir {output_dir}`.")
    rows = json.loads(path.read_text(encoding="utf-8"))
    pictures = [output_dir / "data" / "images" / row["image"] for row in rows]
    return pictures, [row["conversations"][-1]["value"] for row in rows]
