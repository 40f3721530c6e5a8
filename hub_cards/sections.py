"""The sections of a card that are written again when more is known. Marks around them keep the text of others."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult

from ..files.escape import escape_link, escape_markdown
from ..files.markdown_table import markdown_table
from .released_code import hash_folder


def mark(name: str, text: str) -> str:
    """A section between its marks, which are comments: names are escaped, so they cannot be marks."""
    return f"<!-- hawaii: {name} -->\n\n{text}\n\n<!-- hawaii: end of {name} -->"


def replace_section(card: str, name: str, text: str) -> str:
    """A card's text with the section written again; unchanged if its marks were removed."""
    pattern = re.escape(f"<!-- hawaii: {name} -->") + ".*?" + re.escape(f"<!-- hawaii: end of {name} -->")
    return re.sub(pattern, lambda _: mark(name, text), card, count=1, flags=re.DOTALL)


def license_section(metadata: Mapping[str, Any]) -> str:
    """The sentence about the license in a card's metadata."""
    if not metadata.get("license"):
        return "No license is given yet, so nobody but its author may use this model."
    name = escape_markdown(str(metadata.get("license_name") or metadata["license"]))
    if link := metadata.get("license_link"):
        name = f"[{name}]({escape_link(str(link))})"
    return f"The license of this model is {name}."


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else escape_markdown(str(value))


def evaluation_section(results: Sequence[EvalResult]) -> str:
    """The table of the scores in a card's metadata."""
    if not results:
        return "Not evaluated yet."
    rows = [
        [
            str(result.dataset_name),
            str(result.dataset_split or ""),
            str(result.metric_name or result.metric_type),
            _number(result.metric_value),
            _number((result.metric_args or {}).get("num_questions", "")),
        ]
        for result in results
    ]
    return markdown_table(["data", "split", "metric", "value", "questions"], rows, num_text_columns=3)


def code_section(folder: Path) -> str:
    """The hashes of a folder's code, as `sha256sum` prints them."""
    lines = [f"{digest}  {name}" for name, digest in hash_folder(folder).items()]
    return "\n".join(["```text", *lines, "```"])
