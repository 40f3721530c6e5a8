"""Bounds the size of a recipe after interpolation: values that name each other would grow exponentially."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...files.user_error import UserError


LARGEST = 1_000_000  # characters; the built-in recipes have some thousands
# `${`, unless an odd number of backslashes escapes it, and the rest of the reference.
INTERPOLATION = re.compile(r"(?<!\\)(?:\\\\)*\$\{(?P<inner>[^}]*)\}?")
KEY = re.compile(r"[\w-]+")
ENVIRONMENT = re.compile(r"oc\.env:\w+")


def _texts(node: Any) -> Iterator[str]:
    if isinstance(node, dict | list):
        for value in node.values() if isinstance(node, dict) else node:
            yield from _texts(value)
    elif isinstance(node, str):
        yield node


def check_interpolations(path: Path, content: dict) -> None:
    """
    Checks that each `${...}` names an environment variable (`${oc.env:HOME}`) or a shared key whose value is a text or
    a number without a `${...}`, such as `${output_dir}`, and that the expanded recipe is not huge.

    Args:
        path (`Path`):
            File of the recipe, for the error.
        content (`dict`):
            Its content before interpolation.

    Raises:
        UserError: a value has another reference, or the recipe would be larger than [`LARGEST`] characters.
    """
    size = 0
    for text in _texts(content):
        size += len(text)
        for match in INTERPOLATION.finditer(text):
            inner = match["inner"]
            value = content.get(inner)
            is_key = KEY.fullmatch(inner) and inner in content and not isinstance(value, dict | list)
            if not ENVIRONMENT.fullmatch(inner) and (not is_key or INTERPOLATION.search(str(value))):
                raise UserError(
                    f"{path}: ${{{inner[:80]}}} is not a shared key of the recipe whose value is a plain text or "
                    "number. Only such keys and ${oc.env:VARIABLE} can be named in a value."
                )
            size += len(str(value))
    if size > LARGEST:
        raise UserError(f"{path} would have more than {LARGEST:,} characters once its ${{...}} are replaced.")
