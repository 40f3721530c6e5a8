"""The documents and the blocks of code in them."""

import re
from pathlib import Path


ROOT = Path(__file__).parent.parent


def read(document: str) -> str:
    """A document's text, by its path in the repository."""
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """Every block of this language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def links(text: str) -> list[str]:
    """Every link that leads to a file, as it is written."""
    return re.findall(r"\]\((?!http)([^)#]+)", text)
