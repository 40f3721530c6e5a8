"""One record of training data, independent of the file format it was read from."""

from dataclasses import dataclass
from reprlib import Repr
from typing import Any, NamedTuple


_short = Repr()
_short.maxstring = _short.maxother = _short.maxlong = 300


def short_repr(value: Any) -> str:
    """Returns a short `repr` for errors: `repr` itself raises for deep nesting, and may be megabytes long."""
    return _short.repr(value)


class Message(NamedTuple):
    """
    One turn of a conversation. Tuples, since half a million records must fit into memory.

    Args:
        role (`str`):
            `"user"` or `"assistant"`, or `"system"` in the first message.
        text (`str`):
            The words, without placeholders for images.
        num_images (`int`, *optional*, defaults to 0):
            Number of the record's images that precede the text.
    """

    role: str
    text: str
    num_images: int = 0


@dataclass(frozen=True, slots=True)
class Record:
    """
    Args:
        id (`Any`):
            Identifies the record in errors; its index in the file, or its place in the shards of a stream, if the
            data have no ids.
        images (`tuple`):
            In the order of the messages: names in an [`ImageStore`], such as paths relative to the image folder; in a
            stream, also dictionaries with the `bytes` of an image. Checked by [`RecordReader`].
        messages (`tuple[Message, ...]`, *optional*):
            The conversation; empty if the record has only images.
        question_type (`Any`, *optional*):
            Category of the question; a string if the record is valid.
        problem (`str`, *optional*):
            The reason why the conversation cannot be used. An encoder without a language model still learns from the
            images.
        is_readable (`bool`, *optional*, defaults to `True`):
            Whether the images could be read from the record.
    """

    id: Any
    images: tuple[Any, ...]
    messages: tuple[Message, ...] = ()
    question_type: Any = None
    problem: str | None = None
    is_readable: bool = True
