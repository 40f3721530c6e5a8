"""The parts of a model card that change with the weights and the code, whoever wrote the rest."""

import hashlib
import re
from pathlib import Path

from huggingface_hub import ModelCard


CARD = "README.md"
NOT_EVALUATED = "Not evaluated yet."
NOT_RECORDED = "Not recorded: these weights were pushed without a record of their training."


def mark(name: str, text: str) -> str:
    """A section between its marks, which are comments: names are escaped, so they cannot be marks."""
    return f"<!-- hawaii: {name} -->\n\n{text}\n\n<!-- hawaii: end of {name} -->"


def replace_section(card: str, name: str, text: str) -> str:
    """A card's text with the section written again; unchanged if its marks were removed."""
    pattern = re.escape(f"<!-- hawaii: {name} -->") + ".*?" + re.escape(f"<!-- hawaii: end of {name} -->")
    return re.sub(pattern, lambda _: mark(name, text), card, count=1, flags=re.DOTALL)


def hash_folder(folder: Path) -> dict[str, str]:
    """The SHA-256 of each code file in a folder. Each is read: a name in the cache of the Hub is no proof."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*_hawaii.py"))}


def code_section(folder: Path) -> str:
    """The hashes of a folder's code, as `sha256sum` prints them."""
    return "\n".join(["```text", *(f"{digest}  {name}" for name, digest in hash_folder(folder).items()), "```"])


def remove_record(card: str) -> str:
    """A card without scores and training, which describe other weights. Text without marks is its author's."""
    if "model-index" in card:
        parsed = ModelCard(card, ignore_metadata_errors=True)
        parsed.data["eval_results"] = None
        card = str(parsed)
    return replace_section(replace_section(card, "evaluation", NOT_EVALUATED), "training", NOT_RECORDED)


def add_tags(card: str, tags: list[str]) -> str:
    """A card with further tags in its metadata."""
    parsed = ModelCard(card)
    known = parsed.data.get("tags") or []
    if set(tags) <= set(known):
        return card
    parsed.data["tags"] = list(dict.fromkeys([*known, *tags]))
    return str(parsed)
