"""Escapes names in Markdown and texts in a terminal, so that a reader sees exactly their characters."""

import re
from typing import Any
from urllib.parse import quote


# Characters that begin or end markup in Markdown. An underscore within a word does not.
MARKUP = re.compile(r"[\\`*\[\]|~#!$@{}]|(?<![^\W_])_|_(?![^\W_])")
# Without any markup characters, these become a tag, an entity or a link.
ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
LINK = re.compile(r":(?=//)|(?<=www)\.|(?<=mailto):", re.IGNORECASE)
# A terminal obeys control characters. Those of bidirectional text show an order that is not that of the characters.
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def show_controls(text: str) -> str:
    r"""Returns a text for a terminal: control characters other than line breaks and tabs are shown, as in `\x1b`."""
    return CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def flatten(text: str) -> str:
    """Returns a text in one line, without non-printable characters."""
    line = " ".join(text.split())
    return "".join(character for character in line if character.isprintable())


def flatten_all(values: Any) -> Any:
    """Flattens a text, or every text in nested lists."""
    if isinstance(values, list):
        return [flatten_all(value) for value in values]
    return flatten(values) if isinstance(values, str) else values


def escape_markdown(text: str) -> str:
    """Returns Markdown that shows a text in one line."""
    escaped = MARKUP.sub(r"\\\g<0>", flatten(text))
    escaped = re.sub("[&<>]", lambda match: ENTITIES[match[0]], escaped)
    return LINK.sub(lambda match: f"&#{ord(match[0])};", escaped)


def escape_all(values: Any) -> Any:
    """Escapes every text in nested lists and dictionaries, names of keys included."""
    if isinstance(values, dict):
        return {escape_all(key): escape_all(value) for key, value in values.items()}
    if isinstance(values, list):
        return [escape_all(value) for value in values]
    return escape_markdown(values) if isinstance(values, str) else values


def escape_link(address: str) -> str:
    """Returns the address of a web page for the target of a Markdown link; empty if it is no such address."""
    address = "".join(flatten(address).split())
    is_page = address.lower().startswith(("https://", "http://"))
    return quote(address, safe=":/?#@!$&+,;=%~") if is_page else ""
