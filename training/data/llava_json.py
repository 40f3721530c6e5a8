"""LLaVA's JSON: `{"id", "image", "conversations": [{"from": "human" or "gpt", "value": text}]}` for each record."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ...files.user_error import UserError
from .record import Message, Record


ROLES = {"human": "user", "gpt": "assistant"}
IMAGE_PLACEHOLDER = "<image>"


def _parse_turn(value: dict) -> Message | dict:
    """
    Converts the turns of a conversation; returns any other object unchanged. Called by the JSON parser, since the
    dictionaries of all turns would need twice the memory.
    """
    speaker, text = value.get("from"), value.get("value")
    if not (isinstance(text, str) and isinstance(speaker, str) and speaker in ROLES):
        return value
    num_images = text.count(IMAGE_PLACEHOLDER) if speaker == "human" else 0
    return Message(ROLES[speaker], text.replace(IMAGE_PLACEHOLDER, "").strip(), num_images)


def _parse_json(text: str, path: Path, first_line: int = 1) -> Any:
    try:
        return json.loads(text, object_hook=_parse_turn)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {first_line + error.lineno - 1}: {error.msg}.") from error


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
    if not isinstance(value, dict):
        return Record(index, (), problem=f"it is {value!r}, not a JSON object", is_readable=False)
    value = {name: field for name, field in value.items() if _is_given(field)}
    images = value.get("image", [])
    images = tuple(filter(_is_given, images)) if isinstance(images, list) else (images,)
    fields = {"id": value.get("id", index), "images": images, "question_type": value.get("question_type")}
    if not isinstance(value.get("conversations"), list):
        return Record(**fields, problem="it has no list of conversations")
    messages = value["conversations"]
    for turn in messages:
        if not isinstance(turn, Message):
            form = '{"from": "human" or "gpt", "value": text}'
            return Record(**fields, problem=f"a turn is {turn!r}; it must be {form}")
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
            if index == 0 and not isinstance(value, dict):
                raise UserError(f"{path} must hold a list of records, each a JSON object with conversations.")
            yield _parse_record(value, index)
