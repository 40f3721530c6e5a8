"""
What `hawaii check` found in the rows of a data set. The result is in the cache of `datasets` under a key of all that
it depends on, so that training, on any machine that shares the cache, does not look again.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from ...files.atomic import read_json, write_json
from ...files.digest import digest
from ...files.write_errors import explain_write_errors
from ...processing.processing_hawaii import HawaiiProcessor
from ..sources.cache import cache_path
from ..sources.image_folder import ImageStore
from ..sources.record import Record
from .processes import decide_once


INDEXED = ("problems", "image_states")  # by the index of a row, which JSON makes a text


@dataclass
class CheckedRows:
    """
    Args:
        num_images (`list[int]`), num_turns (`list[int]`):
            Number of images and of messages of each row, in the order of the file.
        num_tokens (`list[int]`):
            Number of tokens of each row before truncation; 0 if it cannot be tokenized or has no text.
        problems (`dict[int, str]`):
            Why a row cannot be used, by its index.
        image_states (`dict[int, str]`):
            [`image_states`] of each row with a problem: if an image has changed since, the row is looked at again.
        all_states (`str`):
            The same of all rows: another check reads all again if an image has changed.
    """

    num_images: list[int]
    num_turns: list[int]
    num_tokens: list[int]
    problems: dict[int, str]
    image_states: dict[int, str]
    all_states: str


def processor_key(processor: Any) -> bytes:
    """Returns what the tokens of a conversation depend on; nothing for images alone."""
    if not isinstance(processor, HawaiiProcessor):
        return b""
    tokenizer = json.loads(processor.tokenizer.backend_tokenizer.to_str())
    for name in ("padding", "truncation"):  # of the last call
        tokenizer.pop(name, None)
    content = [tokenizer, processor.tokenizer.special_tokens_map, processor.chat_template, processor.num_image_tokens]
    return json.dumps(content, sort_keys=True).encode()


def image_states(images: ImageStore, records: Iterable[Record]) -> str:
    """Returns a digest that is another one if an image of the records has been replaced, removed or added."""
    states = [images.state(image) for record in records for image in record.images if isinstance(image, str)]
    return digest("\n".join(states).encode(errors="backslashreplace"))


def save_checked(key: str, rows: CheckedRows) -> None:
    """Keeps a result under its key, see [`RecordDataset.check_key`], in the place of an earlier one."""
    path = cache_path(f"{key}.checked.json")
    with explain_write_errors(path, "set HF_DATASETS_CACHE to a folder with space."):
        write_json(path, asdict(rows))


def find_checked(key: str) -> CheckedRows | None:
    """
    Returns the result of an earlier check, or `None`. All processes of a run get what the first one finds: with other
    rows than the others, a process would wait forever.
    """
    path = cache_path(f"{key}.checked.json")
    content = decide_once(lambda: read_json(path) if path.is_file() else None)
    if content is None:
        return None
    by_index = {name: {int(index): text for index, text in content[name].items()} for name in INDEXED}
    return CheckedRows(**{**content, **by_index})
