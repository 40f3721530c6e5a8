"""Loads a model with the code that it contains."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import cached_file


FACTS_FILE = "training.json"


def read_facts(path: str | Path) -> dict:
    """
    Reads the facts about training that the page shows.

    Args:
        path (`str` or `Path`):
            The file `training.json`, which may be missing.

    Returns:
        `dict`: its content; empty without a readable file, because the facts only name what is shown.
    """
    try:
        facts = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # missing, neither JSON nor UTF-8, or nested without end
        return {}
    return facts if isinstance(facts, dict) else {}


def find_title(facts: Mapping[str, Any], name: str) -> str:
    """Returns the name that training gave the model, or the one that it was loaded by."""
    known = facts.get("name")
    return known if isinstance(known, str) and known else name


def load_model(name: str, revision: str | None = None) -> tuple[Any, Any, dict]:
    """
    Loads a model on the first accelerator, or on the CPU.

    Args:
        name (`str`):
            A local folder, or a repository on the Hub. Its code runs with the rights of this process.
        revision (`str`, *optional*):
            Commit of a repository, for weights and code alike.

    Returns:
        The model, its processor, and the facts about its training, see [`read_facts`].
    """
    options = {} if revision is None else {"revision": revision}
    model = AutoModelForImageTextToText.from_pretrained(name, trust_remote_code=True, dtype="auto", **options)
    processor = AutoProcessor.from_pretrained(name, trust_remote_code=True, **options)
    facts = cached_file(name, FACTS_FILE, _raise_exceptions_for_missing_entries=False, **options)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    return model.to(device).eval(), processor, read_facts(facts) if facts else {}
