"""LLaVA's JSON: `{"id", "image", "conversations": [{"from": "human" or "gpt", "value": text}]}` for each record."""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ...files.user_error import UserError
from .record import Message, Record, short_repr


ROLES = {"human": "user", "gpt": "assistant"}
IMAGE_PLACEHOLDER = "<image>"
NEWLINE = "\n"
MAX_DEPTH = 900  # of brackets, in the place that an error names; Python's own limit varies


class RepeatedName(NamedTuple):
    """A name that an object has twice, so that one of its values is lost; stands in the object's place."""

    name: str


def _parse_object(pairs: list[tuple[str, Any]]) -> Message | dict | RepeatedName:
    """
    Converts the turns of a conversation; returns any other object unchanged. Called by the JSON parser, since the
    dictionaries of all turns would need twice the memory.
    """
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        return RepeatedName(next(name for name in names if names.count(name) > 1))
    speaker, text = value.get("from"), value.get("value")
    if not (isinstance(text, str) and isinstance(speaker, str) and speaker in ROLES):
        return value
    num_images = text.count(IMAGE_PLACEHOLDER) if speaker == "human" else 0
    return Message(ROLES[speaker], text.replace(IMAGE_PLACEHOLDER, "").strip(), num_images)


def _parse_json(text: str, path: Path, first_line: int = 1) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_parse_object)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {first_line + error.lineno - 1}: {error.msg}.") from error
    except RecursionError as error:
        position, problem = _find_deep_nesting(text), f"it is nested more than {MAX_DEPTH} deep"
        raise UserError(f"{path}, line {first_line + text.count(NEWLINE, 0, position)}: {problem}.") from error
    except ValueError as error:  # of a number that Python does not convert
        number = re.search(r"\d{4300,}", text)
        position = number.start() if number else 0
        problem = "it has a number of more than 4,300 digits"
        raise UserError(f"{path}, line {first_line + text.count(NEWLINE, 0, position)}: {problem}.") from error


def _find_deep_nesting(text: str) -> int:
    """Returns the position where brackets are more than `MAX_DEPTH` deep."""
    depth = 0
    for match in re.finditer(r'"(?:[^"\\]|\\.)*"|[][{}]', text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(match[0], 0)
        if depth > MAX_DEPTH:
            return match.start()
    return 0


def _read_lines(lines: Iterable[str], path: Path) -> Iterator[Any]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield _parse_json(line.rstrip("\n"), path, number)


def _read_values(path: Path) -> Iterator[Any]:
    # Some programs write a mark before the text, and either form under the name of the other.
    with path.open(encoding="utf-8-sig", newline="\n") as lines:
        is_list = lines.read(100).lstrip().startswith("[")
        lines.seek(0)
        if path.suffix == ".jsonl" and not is_list:
            yield from _read_lines(lines, path)
            return
        text = lines.read()
    try:
        values = _parse_json(text, path)
    except UserError as error:
        if is_list or getattr(error.__cause__, "msg", None) != "Extra data":
            raise
        yield from _read_lines(text.split("\n"), path)
        return
    if isinstance(values, dict) and isinstance(values.get("conversations"), list):
        yield values  # one line of JSON lines
        return
    if not isinstance(values, list):
        raise UserError(f"{path} must hold a list of records, each a JSON object with conversations.")
    for index, value in enumerate(values):
        values[index] = None  # frees each value once it is converted
        yield value


def _is_given(value: Any) -> bool:
    """Whether a field has a value: tables have empty text or NaN in a row without one."""
    return not (value is None or (isinstance(value, str) and not value.strip()) or value != value)


def _parse_record(value: Any, index: int) -> Record:
    """
    Converts one JSON value, whose turns are messages already. An `<image>` anywhere in a turn of the user is moved to
    its front; turns of the assistant before the first one of the user are dropped. The id of a record without one is
    its index in the file.
    """
    if isinstance(value, RepeatedName):
        return Record(index, (), problem=f"it has the field {value.name!r} twice", is_readable=False)
    if not isinstance(value, dict):
        return Record(index, (), problem=f"it is {short_repr(value)}, not a JSON object", is_readable=False)
    value = {name: field for name, field in value.items() if _is_given(field)}
    images = value.get("image", [])
    images = tuple(filter(_is_given, images)) if isinstance(images, list) else (images,)
    record_id = value.get("id", index)
    if isinstance(record_id, list | dict):
        record_id = short_repr(record_id)
    fields = {"id": record_id, "images": images, "question_type": value.get("question_type")}
    if not isinstance(value.get("conversations"), list):
        return Record(**fields, problem="it has no list of conversations")
    messages = value["conversations"]
    for turn in messages:
        if isinstance(turn, RepeatedName):
            return Record(**fields, problem=f"a turn has the field {turn.name!r} twice")
        if not isinstance(turn, Message):
            form = '{"from": "human" or "gpt", "value": text}'
            return Record(**fields, problem=f"a turn is {short_repr(turn)}; it must be {form}")
    first = next((turn for turn, message in enumerate(messages) if message.role == "user"), len(messages))
    return Record(**fields, messages=tuple(messages[first:]))


class LlavaJson:
    """Reads LLaVA's JSON."""

    description = "LLaVA's JSON (.json: a list of records; .jsonl: one record per line)"

    @staticmethod
    def matches(path: Path) -> bool:
        return path.suffix in (".json", ".jsonl")

    @staticmethod
    def read_records(path: Path) -> Iterator[Record]:
        """
        Reads the records in order.

        Raises:
            UserError: The file is not JSON of this form; names the line.
        """
        for index, value in enumerate(_read_values(path)):
            if index == 0 and not isinstance(value, dict | RepeatedName):
                raise UserError(f"{path} must hold a list of records, each a JSON object with conversations.")
            yield _parse_record(value, index)
