"""A small language model that has learned to read: it answers questions about captions, before it sees an image."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BatchEncoding,
    DataCollatorForSeq2Seq,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    set_seed,
)

from ..files.atomic import atomic_folder, write_json
from ..files.digest import digest
from .reports import read_report
from .training import train
from .word_tokenizer import save_tokenizer


REPORT_FILE = "reading.json"
CONFIG = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 344,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
    "tie_word_embeddings": True,
}
# What a run is, beside the number of its steps.
SETTINGS = {
    "per_device_train_batch_size": 24,
    "learning_rate": 2e-3,
    "adam_beta2": 0.98,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.05,
    "weight_decay": 0.0,
    "seed": 0,
}
NUM_CHECKED = 500  # conversations that are held out for the accuracy that is printed


def caption_conversations(rows: Sequence[dict], caption_rows: Sequence[dict]) -> list[list[dict]]:
    """
    Conversations in which a caption stands in the image's place.

    Args:
        rows (`Sequence[dict]`):
            LLaVA's, about one image each; those about an image without a caption are left out.
        caption_rows (`Sequence[dict]`):
            LLaVA's as well, each an image's caption.

    Returns:
        `list[list[dict]]`: the messages of each row, as a chat template takes them.
    """
    captions = {row["image"]: row["conversations"][-1]["value"] for row in caption_rows}
    roles = {"human": "user", "gpt": "assistant"}
    return [
        [
            {"role": roles[turn["from"]], "content": turn["value"].replace("<image>", captions[row["image"]])}
            for turn in row["conversations"]
        ]
        for row in rows
        if row["image"] in captions
    ]


class ConversationDataset(torch.utils.data.Dataset):
    """
    Conversations as tokens, the answers as labels.

    Args:
        conversations (`Sequence[list[dict]]`):
            Messages.
        tokenizer (`PreTrainedTokenizerFast`):
            Its chat template marks what the assistant says.
    """

    def __init__(self, conversations: Sequence[list[dict]], tokenizer: PreTrainedTokenizerFast):
        self.conversations = conversations
        self.tokenizer = tokenizer

    def __len__(self) -> int:
        return len(self.conversations)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        encoding = self.tokenizer.apply_chat_template(
            self.conversations[index], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        assert isinstance(encoding, BatchEncoding)
        labels = [
            token if is_said else -100
            for token, is_said in zip(encoding["input_ids"], encoding["assistant_masks"], strict=True)
        ]
        return {"input_ids": encoding["input_ids"], "attention_mask": encoding["attention_mask"], "labels": labels}


def predict_next_tokens(logits, labels):
    """Returns the most likely token at each position, which the logits of the position before it predict."""
    return F.pad(logits.argmax(dim=-1)[:, :-1], (1, 0), value=-1)


def train_language_model(
    conversations: Sequence[list[dict]], tokenizer: PreTrainedTokenizerFast, num_steps: int
) -> tuple[PreTrainedModel, float]:
    """
    Trains a language model from random weights, on a GPU if there is one.

    Args:
        conversations (`Sequence[list[dict]]`):
            Messages; some are held out.
        tokenizer (`PreTrainedTokenizerFast`):
            Whose words it knows.
        num_steps (`int`):
            Number of steps.

    Returns:
        The model, and the share of the answers' tokens in the held-out conversations that it tells.
    """
    set_seed(SETTINGS["seed"])
    order = torch.randperm(len(conversations)).tolist()
    num_checked = min(NUM_CHECKED, len(order) // 10)
    learned, checked = (
        ConversationDataset([conversations[i] for i in part], tokenizer)
        for part in (order[num_checked:], order[:num_checked])
    )
    config = dict(CONFIG)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = AutoConfig.for_model(config.pop("model_type"), vocab_size=len(tokenizer), **ids, **config)
    model = AutoModelForCausalLM.from_config(config)
    collator = DataCollatorForSeq2Seq(tokenizer)
    accuracy = train(model, learned, checked, num_steps, SETTINGS, predict_next_tokens, collator)
    return model, accuracy


def _sentence(report: dict) -> str:
    return (
        f"tells {report['validation_accuracy']:.1%} of the answers' words from captions after {report['num_steps']} "
        "steps"
    )


def prepare_language_model(
    rows: Sequence[dict],
    caption_rows: Sequence[dict],
    tokenizer: PreTrainedTokenizerFast,
    folder: str | Path,
    num_steps: int,
) -> None:
    """
    Trains the language model that a student starts from, unless it is there: it answers a data set's questions about
    captions in the images' places. What a student then has to learn is to see.

    Args:
        rows, caption_rows (`Sequence[dict]`):
            As for [`caption_conversations`].
        tokenizer (`PreTrainedTokenizerFast`):
            Saved with the model.
        folder (`str` or `Path`):
            Where it goes.
        num_steps (`int`):
            Number of steps.
    """
    conversations = caption_conversations(rows, caption_rows)
    wanted = {
        "config": CONFIG,
        "settings": SETTINGS,
        "num_steps": num_steps,
        "vocabulary": tokenizer.get_vocab(),
        "data": digest(json.dumps(conversations).encode()),
    }
    report = read_report(Path(folder) / REPORT_FILE, wanted)
    if report is not None:
        print(f"Language model is already there: it {_sentence(report)}.")
        return
    with atomic_folder(Path(folder)) as temporary:
        start = time.monotonic()
        model, accuracy = train_language_model(conversations, tokenizer, num_steps)
        seconds = time.monotonic() - start
        report = {**wanted, "validation_accuracy": round(accuracy, 4)}
        model.save_pretrained(temporary)
        save_tokenizer(tokenizer, temporary)
        write_json(temporary / REPORT_FILE, report)
    print(f"Language model: it {_sentence(report)} in {seconds:.0f} s, in {folder}.")
