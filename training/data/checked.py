"""
What `hawaii check` found in the rows of a data set. The result lies in the cache of `datasets` under a key of all
contents that it depends on, so that training, on any machine that shares the cache, does not look again.
"""

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from datasets import config as datasets_config
from torch import distributed

from ...files.atomic import read_json, write_json
from ...files.digest import digest
from ...processing.encoder_processor import EncoderProcessor
from ...processing.processing_hawaii import HawaiiProcessor


FORMAT = 1  # of the files; another number invalidates all of them


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
    """

    num_images: list[int]
    num_turns: list[int]
    num_tokens: list[int]
    problems: dict[int, str]


def processor_key(processor: HawaiiProcessor | EncoderProcessor) -> bytes:
    """Returns what the tokens of a conversation depend on; nothing for images alone."""
    if isinstance(processor, EncoderProcessor):
        return b""
    tokenizer = json.loads(processor.tokenizer.backend_tokenizer.to_str())
    for name in ("padding", "truncation"):  # of the last call
        tokenizer.pop(name, None)
    content = [tokenizer, processor.tokenizer.special_tokens_map, processor.chat_template, processor.num_image_tokens]
    return json.dumps(content, sort_keys=True).encode()


def image_key(paths: Iterable[Path]) -> str:
    """Returns the key of the size and the time of change of each image file; a missing one has neither."""
    lines = []
    for path in sorted({os.fspath(path) for path in paths}):
        try:
            status = os.stat(path)
            lines.append(f"{path}\0{status.st_size}\0{status.st_mtime_ns}")
        except (OSError, ValueError):  # also a name with a null byte
            lines.append(path)
    return make_key("\n".join(lines))


def _cache_file(key: str) -> Path:
    return Path(datasets_config.HF_DATASETS_CACHE) / "hawaii_check" / f"{key}.json"


def save_checked(key: str, rows: CheckedRows) -> None:
    """Keeps a result under the key of its contents, see [`RecordDataset.content_key`]."""
    write_json(_cache_file(key), asdict(rows))


def find_checked(source_key: Callable[[], str], images_key: Callable[[], str]) -> CheckedRows | None:
    """
    Returns the result of an earlier check, or `None`. All processes of a run get what the first one finds: with other
    rows than the others, a process would wait forever.

    Args:
        source_key, images_key (`Callable`):
            Make the parts of [`RecordDataset.content_key`]. Images are looked up only if the other part is known.
    """
    found: list[CheckedRows | None] = [None]
    is_distributed = distributed.is_available() and distributed.is_initialized()
    if not is_distributed or distributed.get_rank() == 0:
        folder = _cache_file("").parent
        source = source_key() if folder.is_dir() else ""
        path = _cache_file(f"{source}-{images_key()}") if any(folder.glob(f"{source}-*.json")) else None
        if path is not None and path.is_file():
            values = read_json(path)
            problems = {int(index): problem for index, problem in values.pop("problems").items()}
            found = [CheckedRows(**values, problems=problems)]
    if is_distributed:
        distributed.broadcast_object_list(found)
    return found[0]


def make_key(*parts: str | bytes | Path) -> str:
    """Joins parts to a key; a `Path` stands for the content of the file."""
    return digest(
        *(part if isinstance(part, Path) else digest(_encode(part)).encode() for part in (str(FORMAT), *parts))
    )


def _encode(part: str | bytes) -> bytes:
    return part if isinstance(part, bytes) else part.encode(errors="backslashreplace")
