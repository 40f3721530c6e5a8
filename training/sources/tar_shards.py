"""Tar shards, in which the files NAME.* are one record: NAME.jpg or another image, and NAME.json or NAME.txt."""

import posixpath
import tarfile
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from datasets.packaged_modules.webdataset.webdataset import WebDataset

from ...files.user_error import UserError
from .llava_json import parse_json
from .record import Record
from .record_forms import make_record


# Suffixes of images, which are the names of their columns.
SHARD_IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")


class TextShards(WebDataset):
    """
    Reads tar shards without parsing their files: a text that cannot be parsed is then a bad record instead of an error
    of all shards, and records may have different fields.
    """

    DECODERS: ClassVar[dict] = {}


@lru_cache(maxsize=16)
def _unread_images(shard: str, columns: tuple[str, ...]) -> dict[str, str]:
    """
    Returns the image suffixes of a shard that `datasets` does not read, by record. It reads the suffixes of the first
    five records only. A shard that is not a file here has none.
    """
    unread = {}
    if Path(shard).is_file():
        with tarfile.open(shard) as archive:
            for info in archive:
                archive.members = []  # otherwise it keeps all  # pyright: ignore[reportAttributeAccessIssue]
                folder, name = posixpath.split(info.name)
                record, _, suffix = name.partition(".")
                if suffix not in columns and suffix.rpartition(".")[2].lower() in SHARD_IMAGES:
                    unread[posixpath.join(folder, record)] = suffix
    return unread


def make_shard_record(row: dict[str, Any], columns: list[str], images: list) -> Record:
    """
    Converts a row of tar shards.

    Args:
        row (`dict`):
            The files of a record by their suffixes, with its name as `__key__` and its shard as `__url__`.
        columns (`list[str]`):
            Suffixes of images.
        images (`list`):
            The images of the row.
    """
    key, content, caption = row["__key__"], row.get("json"), row.get("txt")
    try:
        if isinstance(content, bytes):
            content = parse_json(content.decode("utf-8-sig"), Path(f"{key}.json"))
        if isinstance(caption, bytes):
            caption = caption.decode("utf-8-sig")
    except (UserError, UnicodeDecodeError) as error:
        return Record(key, tuple(images), problem=f"its text cannot be read ({str(error).removesuffix('.')})")
    unread = {} if images else _unread_images(row.get("__url__", ""), tuple(columns))
    if key in unread:
        problem = f"its image .{unread[key]} is not read, because the first records have no such suffix"
        return Record(key, (), problem=problem, is_readable=False)
    if isinstance(content, dict):
        # Its own names of images are those of files in the shard.
        content = {name: field for name, field in content.items() if name not in ("image", "images")}
        return make_record({"id": key, **content, "image": images}, key)
    if content is not None:
        return make_record(content, key)
    if caption is None:
        return make_record({"id": key, "image": images}, key)
    if not images:
        return Record(key, (), problem="its caption has no image", is_readable=False)
    turns = [{"from": "human", "value": "<image>" * len(images)}, {"from": "gpt", "value": caption}]
    return make_record({"id": key, "conversations": turns, "image": images}, key)
