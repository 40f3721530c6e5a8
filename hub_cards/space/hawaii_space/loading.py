"""Loads a model with the code that it contains."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import cached_file


FACTS_FILE = "training.json"


def load_model(name: str, revision: str | None = None) -> tuple[Any, Any, dict]:
    """
    Loads a model on the first accelerator, or on the CPU.

    Args:
        name (`str`):
            A local folder, or a repository on the Hub. Its code runs with the rights of this process.
        revision (`str`, *optional*):
            Commit, tag or branch of a repository, for weights and code alike.

    Returns:
        The model, its processor, and the facts about its training, which are empty if it has none.
    """
    options = {} if revision is None else {"revision": revision}
    model = AutoModelForImageTextToText.from_pretrained(name, trust_remote_code=True, dtype="auto", **options)
    processor = AutoProcessor.from_pretrained(name, trust_remote_code=True, **options)
    facts = cached_file(name, FACTS_FILE, _raise_exceptions_for_missing_entries=False, **options)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    return model.to(device).eval(), processor, json.loads(Path(facts).read_text(encoding="utf-8")) if facts else {}
