"""Bounds what the interpolations of a recipe can expand to: each may name a value with several others."""

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from ...files.user_error import UserError


LARGEST = 1_000_000  # characters; the built-in recipes have some thousands
INTERPOLATION = re.compile(r"\$\{([^${}]*)\}")
NAME = re.compile(r"[A-Za-z_][\w-]*")


def _values_by_name(node: Any, found: dict[str, list]) -> dict[str, list]:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, value in items:
        found[str(name)].append(value)
        _values_by_name(value, found)
    return found


def check_interpolations(path: Path, content: dict) -> None:
    """
    Checks the size of a recipe after interpolation. A reference counts as the largest value of the name that it ends
    in, so that relative ones need not be resolved.

    Args:
        path (`Path`):
            File of the recipe, for the error.
        content (`dict`):
            Its content before interpolation.

    Raises:
        UserError: it would be larger than [`LARGEST`] characters.
    """
    values, sizes = _values_by_name(content, defaultdict(list)), {}

    def size_of_name(name: str) -> int:
        if name not in sizes:
            sizes[name] = 0  # a reference to itself is OmegaConf's to report
            sizes[name] = max(map(size_of, values.get(name, [])), default=0)
        return sizes[name]

    def size_of(node: Any) -> int:
        if isinstance(node, dict | list):
            return sum(1 + size_of(value) for value in (node.values() if isinstance(node, dict) else node))
        text = str(node)
        names = (NAME.findall(inner) for inner in INTERPOLATION.findall(text))
        return len(text) + sum(size_of_name(found[-1]) for found in names if found)

    if size_of(content) > LARGEST:
        raise UserError(
            f"{path} would have more than {LARGEST:,} characters once its ${{...}} are replaced: remove the values "
            "that name each other several times."
        )
