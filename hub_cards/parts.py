"""The table of everything that a model was made from: origins and licenses, as Markdown."""

from collections.abc import Mapping
from typing import Any

from ..files.escape import escape_all, escape_link
from .card_options import is_repository
from .licenses import License


def _link(name: str, address: str | None) -> str:
    """Markdown of a name that is escaped already, with a link if there is an address."""
    target = escape_link(address) if address else ""
    return f"[{name}]({target})" if target else name


def _describe_origin(origin: Mapping[str, Any] | None) -> tuple[str, str]:
    """Markdown of where a model comes from, and of its license."""
    if origin is None:
        return "random weights", "-"
    (first, *_) = [*origin["repositories"], None]
    name = escape_all(origin["name"])
    if origin["name"] != first:
        name = f"{name} (local)" if first is None else f"{name} (local), from {escape_all(first)}"
    license = License(**origin["license"]) if origin["license"] else None
    shown = "not known" if license is None else _link(escape_all(str(license)), license.link)
    page = f"https://huggingface.co/{first}" if first and is_repository(first) else None
    return _link(name, page), shown


def describe_parts(parts: Mapping[str, Any], stages: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """
    Rows of the table: part, origin and license.

    Args:
        parts (`Mapping[str, Any]`):
            `models`, `teachers` and `datasets` of the facts of a card.
        stages (`Mapping[str, Any]`):
            The facts about the stages, with escaped names: teachers that no stage names are left out.
    """
    rows = [
        (f"{escape_all(part)}, at the start", *_describe_origin(origin))
        for part, origin in (parts.get("models") or {}).items()
    ]
    used = {name for stage in stages.values() for name in stage["teachers"]}
    for name, origin in (parts.get("teachers") or {}).items():
        if escape_all(name) in used:
            rows.append((f"teacher {escape_all(name)}", *_describe_origin(origin)))
    for data in parts.get("datasets") or []:
        rows.append(("data", _link(escape_all(data["name"]), data["url"]), escape_all(data["license"] or "not known")))
    return rows
