"""A small language model that is pretrained to answer questions about captions, before it sees images."""

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
# All training arguments except the number of steps.
SETTINGS = {
    "per_device_train_batch_size": 24,
    "learning_rate": 2e-3,
    "adam_beta2": 0.98,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.05,
    "weight_decay": 0.0,
    "seed": 0,
}
NUM_HELD_OUT = 500  # conversations for the accuracy that is printed


def caption_conversations(rows: Sequence[dict], caption_rows: Sequence[dict]) -> list[list[dict]]:
    """
    Converts rows of LLaVA's JSON to messages in which the captions of `caption_rows` replace the images. Rows about an
    image without a caption are omitted.
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
    """Tokens of conversations, with the answers as labels, which the tokenizer's chat template marks."""

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
            token if is_answer else -100
            for token, is_answer in zip(encoding["input_ids"], encoding["assistant_masks"], strict=True)
        ]
        return {"input_ids": encoding["input_ids"], "attention_mask": encoding["attention_mask"], "labels": labels}


def predict_next_tokens(logits, labels):
    """Returns the most likely token at each position, which the logits of the position before it predict."""
    return F.pad(logits.argmax(dim=-1)[:, :-1], (1, 0), value=-1)


def train_language_model(
    conversations: Sequence[list[dict]], tokenizer: PreTrainedTokenizerFast, num_steps: int
) -> tuple[PreTrainedModel, float]:
    """
    Trains a language model from random weights. Returns it in eval mode on the CPU, with its accuracy for the tokens
    of the answers in held-out conversations.
    """
    set_seed(SETTINGS["seed"])
    order = torch.randperm(len(conversations)).tolist()
    num_held_out = min(NUM_HELD_OUT, len(order) // 10)
    learned, held_out = (
        ConversationDataset([conversations[i] for i in part], tokenizer)
        for part in (order[num_held_out:], order[:num_held_out])
    )
    config = dict(CONFIG)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = AutoConfig.for_model(config.pop("model_type"), vocab_size=len(tokenizer), **ids, **config)
    model = AutoModelForCausalLM.from_config(config)
    collator = DataCollatorForSeq2Seq(tokenizer)
    accuracy = train(model, learned, held_out, num_steps, SETTINGS, predict_next_tokens, collator)
    model.config.use_cache = True  # `Trainer` turns it off, and it is saved
    return model, accuracy


def _summary(report: dict) -> str:
    accuracy, num_steps = report["validation_accuracy"], report["num_steps"]
    return f"predicts {accuracy:.1%} of the words of answers about captions after {num_steps} steps"


def prepare_language_model(
    rows: Sequence[dict],
    caption_rows: Sequence[dict],
    tokenizer: PreTrainedTokenizerFast,
    folder: str | Path,
    num_steps: int,
) -> None:
    """
    Trains the language model of a student, unless it exists. It answers a data set's questions about captions that
    replace the images, so that the student only has to learn to see.

    Args:
        rows, caption_rows (`Sequence[dict]`):
            As for [`caption_conversations`].
        tokenizer (`PreTrainedTokenizerFast`):
            Tokenizer, which is saved with the model.
        folder (`str` or `Path`):
            Folder of the model.
        num_steps (`int`):
            Number of steps.
    """
    conversations = caption_conversations(rows, caption_rows)
    wanted = {
        "config": CONFIG,
        "settings": SETTINGS,
        "num_steps": num_steps,
        "vocabulary": dict(sorted(tokenizer.get_vocab().items())),
        "data": digest(json.dumps(conversations).encode()),
    }
    report = read_report(Path(folder) / REPORT_FILE, wanted)
    if report is not None:
        print(f"The language model already exists: it {_summary(report)}.")
        return
    start = time.monotonic()
    with atomic_folder(folder) as temporary:
        model, accuracy = train_language_model(conversations, tokenizer, num_steps)
        report = {**wanted, "validation_accuracy": round(accuracy, 4)}
        model.save_pretrained(temporary)
        save_tokenizer(tokenizer, temporary)
        write_json(temporary / REPORT_FILE, report)
    print(f"Language model: it {_summary(report)} in {time.monotonic() - start:.0f} s, in {folder}.")
