"""The parts of a model card that change with the weights and the code, whoever wrote the rest."""

import hashlib
import re
from pathlib import Path

from huggingface_hub import ModelCard
from huggingface_hub.utils import yaml_dump


CARD = "README.md"
CODE_SUFFIX = "_hawaii.py"
# Windows' editors begin a file with the first character.
METADATA = re.compile(r"(\ufeff?\s*---[ \t]*\r?\n)(.*?)(?=^---[ \t]*\r?$)", re.DOTALL | re.MULTILINE)
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
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob(f"*{CODE_SUFFIX}"))
    }


def code_section(folder: Path) -> str:
    """The hashes of a folder's code, as `sha256sum` prints them."""
    return "\n".join(["```text", *(f"{digest}  {name}" for name, digest in hash_folder(folder).items()), "```"])


def _set_field(card: str, name: str, value: list[str] | None) -> str:
    """
    A card with a field of its metadata replaced, or removed for `None`. The other fields stay as their author wrote
    them: a YAML library would write the Norwegian language, `no`, as `false`.
    """
    found = METADATA.match(card)
    start, fields = found.groups() if found else ("---\n", "")
    rest = card[found.end() :] if found else f"---\n\n{card}"
    line = r"[^\n]*\n"
    fields = re.sub(rf"^{re.escape(name)}[ \t]*:{line}(([ \t-]{line})|([ \t\r]*\n))*", "", fields, flags=re.MULTILINE)
    if value is None:
        return f"{start}{fields}{rest}" if found else card
    return f"{start}{fields}{yaml_dump({name: value})}{rest}"


def remove_record(card: str) -> str:
    """A card without scores and training, which describe other weights. Text without marks is its author's."""
    card = _set_field(card, "model-index", None)
    return replace_section(replace_section(card, "evaluation", NOT_EVALUATED), "training", NOT_RECORDED)


def add_tags(card: str, tags: list[str]) -> str:
    """A card with further tags in its metadata."""
    known = ModelCard(card.removeprefix("\ufeff"), ignore_metadata_errors=True).data.get("tags") or []
    return card if set(tags) <= set(known) else _set_field(card, "tags", list(dict.fromkeys([*known, *tags])))
