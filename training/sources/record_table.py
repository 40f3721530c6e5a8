"""Records in an Arrow file that is mapped into memory: processes share its pages without copies."""

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

from ...files.user_error import UserError
from .cache import cached_file
from .record import Message, Record


NUM_ROWS = 5000  # per batch of the file
MESSAGE = pa.struct([("role", pa.string()), ("text", pa.string()), ("num_images", pa.int32())])
SCHEMA = pa.schema(
    [
        ("id", pa.string()),  # JSON
        ("images", pa.list_(pa.string())),
        ("messages", pa.list_(MESSAGE)),
        ("question_type", pa.string()),  # JSON
        ("problem", pa.string()),
        ("is_readable", pa.bool_()),
        # Images and messages as JSON, if they are not valid Unicode text, as in some records with a problem.
        ("other", pa.string()),
    ]
)


def _to_json(value: Any) -> str:
    return json.dumps(value, default=repr)


def _is_text(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _to_row(record: Record) -> dict:
    texts = [text for message in record.messages for text in (message.role, message.text)]
    is_plain = all(map(_is_text, [*record.images, *texts]))
    messages = [message._asdict() for message in record.messages]
    return {
        "id": _to_json(record.id),
        "images": list(record.images) if is_plain else [],
        "messages": messages if is_plain else [],
        "question_type": None if record.question_type is None else _to_json(record.question_type),
        "problem": record.problem and record.problem.encode(errors="backslashreplace").decode(),
        "is_readable": record.is_readable,
        "other": None if is_plain else _to_json({"images": record.images, "messages": messages}),
    }


def _to_record(row: dict) -> Record:
    content = row if row["other"] is None else json.loads(row["other"])
    return Record(
        id=json.loads(row["id"]),
        images=tuple(content["images"]),
        messages=tuple(Message(**message) for message in content["messages"]),
        question_type=row["question_type"] and json.loads(row["question_type"]),
        problem=row["problem"],
        is_readable=row["is_readable"],
    )


class RecordTable(Sequence[Record]):
    """
    A sequence of records, each made when it is read.

    Args:
        path (`Path`):
            File of [`save_records`].
        indices (`np.ndarray`, *optional*):
            The rows of the file that are in the sequence; all if not given.
    """

    def __init__(self, path: Path, indices: np.ndarray | None = None):
        self.path = path
        self.indices = indices
        self._rows: Any = Dataset.from_file(str(path)).with_format("arrow")

    def __len__(self) -> int:
        return len(self._rows) if self.indices is None else len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        row = index if self.indices is None else int(self.indices[index])
        return _to_record(self._rows[row].to_pylist()[0])

    def __iter__(self) -> Iterator[Record]:
        return map(_to_record, self._read(self._rows))

    def _read(self, rows: Any) -> Iterator[dict]:
        for start in range(0, len(self), NUM_ROWS):
            end = min(start + NUM_ROWS, len(self))
            chosen = slice(start, end) if self.indices is None else self.indices[start:end]
            yield from rows[chosen].to_pylist()

    def select(self, indices: np.ndarray) -> "RecordTable":
        """Returns the table with only the records of these indices."""
        return RecordTable(self.path, indices if self.indices is None else self.indices[indices])

    def without_messages(self) -> Iterator[Record]:
        """Reads all records without their conversations, in a fraction of the time."""
        rows = self._rows.remove_columns("messages")
        return (_to_record({**row, "messages": []}) for row in self._read(rows))


def save_records(name: str, records: Iterable[Record], source: str) -> RecordTable:
    """
    Writes records into a file of the cache, unless it exists.

    Args:
        name (`str`):
            Digest of everything that the records depend on.
        records (`Iterable[Record]`):
            Read in batches, and only if there is no such file.
        source (`str`):
            Names the data in errors.
    """

    def write(path: Path) -> None:
        rows = map(_to_row, records)
        try:
            with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, SCHEMA) as writer:
                while chunk := list(islice(rows, NUM_ROWS)):
                    writer.write_batch(pa.RecordBatch.from_pylist(chunk, schema=SCHEMA))
        except RecursionError as error:
            raise UserError(f"{source}: a field of a record is nested too deeply.") from error

    return RecordTable(cached_file(f"{name}.arrow", write))


class TableStream:
    """
    A record table with the interface of a stream.

    Args:
        records ([`RecordTable`]):
            The records.
    """

    def __init__(self, records: RecordTable):
        self.records = records

    def read(self, seed: int, epoch: int, reader: int, num_readers: int) -> Iterator[Record]:
        """Reads every `num_readers`-th record in the order of the epoch; arguments as for [`DatasetStream.read`]."""
        order = np.random.default_rng([seed, epoch]).permutation(len(self.records))
        return (self.records[int(number)] for number in order[reader::num_readers])
