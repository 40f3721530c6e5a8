"""Names and values of a recipe: the closest known name, and YAML's values as the types of dataclasses."""

import difflib
from collections.abc import Iterable
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from ...files.user_error import UserError


TYPE_NAMES = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    list: "a list",
    dict: "a mapping",
}


def check_names(location: str, noun: str, names: Iterable, known: Iterable[str]) -> None:
    """Raises a `UserError` with the closest known name if one is unknown; `noun` is the kind of name."""
    known = list(known)
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise UserError(f"{location}: there is no {noun} {name!r}.{hint}")


def convert_option(location: str, name: str, value: Any, annotation: Any) -> Any:
    """
    Converts a value to the type of its option. YAML reads a folder named 2024 as a number and the word no as false.

    Raises:
        UserError: the option cannot have this value.
    """
    union = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    types = [get_origin(member) or member for member in union]
    if str in types and type(value) not in types:
        if isinstance(value, bool):
            value = "yes" if value else "no"
        elif isinstance(value, int):
            value = str(value)
        elif isinstance(value, float):
            raise UserError(f"{location}: {name} is the number {value!r}; it must be text: put it in quotes.")
    elif isinstance(value, str) and str not in types and float in types:
        try:
            value = float(value)
        except ValueError:
            pass  # the error below names the type
    if isinstance(value, float) and value.is_integer() and float not in types and int in types:
        value = int(value)
    if type(value) in types or (type(value) is int and float in types):
        return value
    if value is None:
        raise UserError(f"{location}: {name} is empty; give it a value, or leave the key out.")
    allowed = " or ".join(TYPE_NAMES.get(member, str(member)) for member in types if member is not NoneType)
    raise UserError(f"{location}: {name} is {value!r}; it must be {allowed}.")
