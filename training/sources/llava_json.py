"""JSON of records: LLaVA's `{"id", "image", "conversations"}`, or `{"images", "messages"}` of a chat."""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from ...files.user_error import UserError
from .record import Record
from .record_forms import RepeatedName, make_record, parse_object


WHITE_SPACE = re.compile(r"[ \t\n\r]*")
NUM_CHARACTERS = 2**20  # read at a time


class _NotAList(Exception):
    """The text is not a list of JSON values."""


def _explain(error: Exception, path: Path, line: int) -> UserError:
    if isinstance(error, json.JSONDecodeError):
        return UserError(f"{path}, line {line + error.lineno - 1}: {error.msg}.")
    if isinstance(error, RecursionError):
        return UserError(f"{path}, line {line}: its JSON is nested too deeply.")
    return UserError(f"{path}, line {line}: a number has too many digits ({str(error).partition(';')[0]}).")


def parse_json(text: str, path: Path, first_line: int = 1) -> Any:
    """
    Parses a JSON text, with the turns of LLaVA's form as messages.

    Args:
        text (`str`), path (`Path`), first_line (`int`, *optional*, defaults to 1):
            The text, and the file and the line from which it comes, for errors.

    Raises:
        UserError: The text is not JSON, is nested too deeply or has a number that is too long.
    """
    try:
        return json.loads(text, object_pairs_hook=parse_object)
    except (ValueError, RecursionError) as error:
        raise _explain(error, path, first_line) from error


def _read_lines(lines: Iterable[str], path: Path) -> Iterator[Any]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield parse_json(line.rstrip("\n"), path, number)


class _ListReader:
    """Reads the values of a JSON list one after the other, without the complete text in memory."""

    def __init__(self, file: TextIO, path: Path):
        self.file, self.path = file, path
        self.text, self.position = "", 0
        self.num_lines = 0  # before `text`
        self.decoder = json.JSONDecoder(object_pairs_hook=parse_object)

    def _read_more(self) -> bool:
        more = self.file.read(max(NUM_CHARACTERS, len(self.text) - self.position))
        if more:
            self.num_lines += self.text.count("\n", 0, self.position)
            self.text, self.position = self.text[self.position :] + more, 0
        return bool(more)

    def _next_character(self) -> str:
        """Moves to the next character that is not white space and returns it; empty at the end."""
        while True:
            self.position = WHITE_SPACE.match(self.text, self.position).end()
            if self.position < len(self.text):
                return self.text[self.position]
            if not self._read_more():
                return ""

    def _expect(self, *characters: str) -> str:
        character = self._next_character()
        if character not in characters:
            raise _NotAList
        self.position += 1
        return character

    def _read_value(self) -> Any:
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.position)
            except json.JSONDecodeError:
                if not self._read_more():
                    raise _NotAList from None
            except (ValueError, RecursionError) as error:
                line = 1 + self.num_lines + self.text.count("\n", 0, self.position)
                raise _explain(error, self.path, line) from error
            else:
                if end < len(self.text) or not self._read_more():  # a number may continue
                    self.position = end
                    return value

    def read(self) -> Iterator[Any]:
        self._expect("[")
        if self._next_character() != "]":
            separator = ","
            while separator == ",":
                self._next_character()
                yield self._read_value()
                separator = self._expect(",", "]")
        else:
            self.position += 1
        if self._next_character():
            raise _NotAList


def _read_values(path: Path) -> Iterator[Any]:
    # Some programs write a byte order mark, JSON lines into a .json file, or a list into a .jsonl file.
    with path.open(encoding="utf-8-sig", newline="\n") as lines:
        is_list = lines.read(100).lstrip().startswith("[")
        lines.seek(0)
        if is_list:
            try:
                yield from _ListReader(lines, path).read()
                return
            except _NotAList:
                lines.seek(0)  # the parser of the complete text gives a better error
        elif path.suffix == ".jsonl":
            yield from _read_lines(lines, path)
            return
        text = lines.read()
    try:
        values = parse_json(text, path)
    except UserError as error:
        if is_list or getattr(error.__cause__, "msg", None) != "Extra data":
            raise
        yield from _read_lines(text.split("\n"), path)
        return
    if isinstance(values, dict) and any(isinstance(values.get(name), list) for name in ("conversations", "messages")):
        yield values  # one line of JSON lines
        return
    raise UserError(f"{path} must hold a list of records, each a JSON object with conversations.")


class LlavaJson:
    """Reads LLaVA's JSON, and chats in JSON."""

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
            yield make_record(value, index)
