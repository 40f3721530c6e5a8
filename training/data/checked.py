"""
The result of `hawaii check` for the rows of a data set. It is stored in the cache of `datasets` under a key of
everything that it depends on. Training does not repeat the check, on any machine that shares the cache.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...files.atomic import read_json, write_json
from ...files.digest import digest
from ...files.user_error import UserError
from ...files.write_errors import explain_write_errors
from ...processing.processing_hawaii import HawaiiProcessor
from ..sources.cache import cache_path
from ..sources.image_folder import ImageStore
from ..sources.record import Record
from .processes import decide_once


INDEXED = ("problems", "image_states")  # dictionaries by the index of a row; JSON converts the indices to text


@dataclass
class CheckedRows:
    """
    Args:
        num_images (`list[int]`), num_turns (`list[int]`):
            Number of images and of messages of each row, in the order of the file.
        num_tokens (`list[int]`):
            Number of tokens of each row before truncation; 0 if it cannot be tokenized or has no text.
        num_tiles (`list[int]`):
            Number of squares of the images of each row; that of the images if their sizes cannot be read.
        problems (`dict[int, str]`):
            The reason why a row cannot be used, by its index.
        image_states (`dict[int, str]`):
            [`image_states`] of each row with a problem: if an image has changed, the row is checked again.
        all_states (`str`):
            [`image_states`] of all rows: if an image has changed, the next check reads all rows again.
    """

    num_images: list[int]
    num_turns: list[int]
    num_tokens: list[int]
    num_tiles: list[int]
    problems: dict[int, str]
    image_states: dict[int, str]
    all_states: str


def processor_key(processor: Any) -> bytes:
    """Returns everything that the tokens of a conversation depend on; empty for images without text."""
    if not isinstance(processor, HawaiiProcessor):
        return b""
    tokenizer = json.loads(processor.tokenizer.backend_tokenizer.to_str())
    for name in ("padding", "truncation"):  # the options of the last call
        tokenizer.pop(name, None)
    images = [processor.num_image_tokens, processor.image_grid_pinpoints]
    if processor.image_grid_pinpoints is not None:
        images.append(processor.image_processor.tile_size)
    content = [tokenizer, processor.tokenizer.special_tokens_map, processor.chat_template, images]
    return json.dumps(content, sort_keys=True).encode()


def image_states(images: ImageStore, records: Iterable[Record]) -> str:
    """Returns a digest that changes if an image of the records is replaced, removed or added."""
    states = [images.state(image) for record in records for image in record.images if isinstance(image, str)]
    return digest("\n".join(states).encode(errors="backslashreplace"))


def save_checked(key: str, rows: CheckedRows) -> None:
    """Stores a result under its key, see [`RecordDataset.check_key`], and replaces an earlier one."""
    path = cache_path(f"{key}.checked.json")
    with explain_write_errors(path, "run the same command again, or set HF_DATASETS_CACHE to another folder."):
        write_json(path, asdict(rows))


def _read_checked(path: Path) -> CheckedRows | None:
    try:
        content = read_json(path)
        by_index = {name: {int(index): text for index, text in content[name].items()} for name in INDEXED}
        return CheckedRows(**{**content, **by_index})
    except (OSError, UserError, KeyError, TypeError, ValueError, AttributeError):
        return None  # not there, or damaged, as after a crash of the machine


def find_checked(key: str) -> CheckedRows | None:
    """
    Returns the result of an earlier check, or `None` if there is none that can be read. All processes of a run get the
    result of the main process: with different rows, they would wait for each other forever.
    """
    return decide_once(_read_checked, cache_path(f"{key}.checked.json"))
