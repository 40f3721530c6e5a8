"""A manifest lists the files of a saved folder, so that damage is found before anything is loaded."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any

from .atomic import visible_files, write_text
from .digest import CHUNK_SIZE
from .run_contents import MANIFEST_FILE
from .user_error import UserError


# Files are hashed in blocks, so that all threads can share the work on a single large file.
BLOCK_SIZE = 2**26
HASH_SIZE = 16
MAX_THREADS = 16


def _hash_block(path: Path, start: int) -> bytes:
    hashed = hashlib.blake2b(digest_size=HASH_SIZE)
    end = start + BLOCK_SIZE
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while start < end and (chunk := file.read(min(CHUNK_SIZE, end - start))):
            hashed.update(chunk)
            start += len(chunk)
    return hashed.digest()


def hash_files(paths: Iterable[Path]) -> Iterator[str]:
    """
    Yields the hash of each file's content: BLAKE2b over the BLAKE2b hashes of its blocks of 64 MiB. Threads hash the
    blocks, each with one megabyte of memory.
    """
    blocks = [(path, start) for path in paths for start in range(0, max(1, path.stat().st_size), BLOCK_SIZE)]
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        hashes = pool.map(lambda block: (block[0], _hash_block(*block)), blocks)
        for _, group in groupby(hashes, key=lambda block: block[0]):
            yield hashlib.blake2b(b"".join(block for _, block in group), digest_size=HASH_SIZE).hexdigest()


def _to_text(content: dict[str, Any]) -> str:
    """The manifest's text. It ends with a hash of the rest, so that damage to the manifest is found as well."""
    text = json.dumps(content, indent=2, ensure_ascii=False, sort_keys=True)
    own = hashlib.blake2b(text.encode(), digest_size=HASH_SIZE).hexdigest()
    return json.dumps({**content, "manifest": own}, indent=2, ensure_ascii=False, sort_keys=True) + "\n"


def _find_files(folder: Path, left_out: Iterable[str]) -> list[str]:
    """Paths of all files, including hidden ones: a sharded checkpoint has its index in `.metadata`."""
    found = (Path(parent, name).relative_to(folder) for parent, _, names in os.walk(folder) for name in names)
    return sorted(path.as_posix() for path in found if path.as_posix() not in (MANIFEST_FILE, *left_out))


def write_manifest(folder: str | os.PathLike, identity: dict[str, Any], left_out: Iterable[str] = ()) -> None:
    """
    Writes the manifest of a complete folder. It is the last file to write before the folder gets its final name.

    Args:
        folder (`str` or `os.PathLike`):
            Folder whose files are hashed, including those in subfolders.
        identity (`dict[str, Any]`):
            JSON values that identify the content of the folder.
        left_out (`Iterable[str]`, *optional*):
            Files that may change later.
    """
    folder = Path(folder)
    names = _find_files(folder, left_out)
    paths = [folder / name for name in names]
    files = {
        name: {"size": path.stat().st_size, "hash": hashed}
        for name, path, hashed in zip(names, paths, hash_files(paths), strict=True)
    }
    write_text(folder / MANIFEST_FILE, _to_text({"files": files, "left_out": [*left_out], "identity": identity}))


def _is_manifest(content: dict[str, Any]) -> bool:
    """Whether a manifest has all fields, and lists files of its folder only: the export copies what it lists."""
    return (
        all(
            not PurePosixPath(name).is_absolute()
            and ".." not in PurePosixPath(name).parts
            and isinstance(listed["size"], int)
            and isinstance(listed["hash"], str)
            for name, listed in content["files"].items()
        )
        and isinstance(content["left_out"], list)
        and isinstance(content["identity"], dict)
    )


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise UserError(f"{folder} lacks {MANIFEST_FILE}, so its files cannot be checked")
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
        own = content.pop("manifest")
        is_whole = isinstance(own, str) and _to_text(content) == text and _is_manifest(content)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        is_whole = False
    if not is_whole:
        raise UserError(f"{path} is {'empty' if not path.stat().st_size else 'damaged'}")
    return content


def read_files(folder: str | os.PathLike) -> dict[str, dict[str, Any]]:
    """The `size` and `hash` of each file in a folder's manifest. Errors as for [`read_identity`]."""
    return _read_manifest(Path(folder))["files"]


def read_identity(folder: str | os.PathLike) -> dict[str, Any]:
    """
    The identity in a folder's manifest; the other files are not checked.

    Raises:
        UserError: there is no manifest, or it is damaged. The message has no final period: the caller adds the remedy.
    """
    return _read_manifest(Path(folder))["identity"]


def _describe_size(path: Path, size: int) -> str | None:
    """Describes the difference between a file's size and that in the manifest; `None` if there is none."""
    here = path.stat().st_size
    if here == size:
        return None
    if not here:
        return f"{path} is empty"
    return f"{path} is {'truncated' if here < size else 'changed'}: it has {here:,} of {size:,} bytes"


def check_listed_files(folder: str | os.PathLike) -> dict[str, Any]:
    """
    Checks the files that a folder's manifest lists. Sizes are compared first, then hashes.

    Returns:
        `dict[str, Any]`: the identity in the manifest.

    Raises:
        UserError: a file is missing, empty, truncated or changed, or the manifest is missing or damaged. The message
            names the file and has no final period: the caller adds the remedy, which depends on the folder.
    """
    folder = Path(folder)
    content = _read_manifest(folder)
    files = content["files"]
    paths = {name: folder / name for name in files}
    for name, path in paths.items():
        if not path.is_file():
            raise UserError(f"{folder} lacks {name}")
        if problem := _describe_size(path, files[name]["size"]):
            raise UserError(problem)
    for name, hashed in zip(files, hash_files(paths.values()), strict=True):
        if hashed != files[name]["hash"]:
            raise UserError(f"{paths[name]} is damaged: its content has changed since it was saved")
    return content["identity"]


def find_added_files(folder: str | os.PathLike) -> Iterator[Path]:
    """
    Yields the files that a folder's manifest does not list. Hidden files are left out: file managers and network file
    systems create them. Errors as for [`read_identity`].
    """
    content = _read_manifest(Path(folder))
    known = {*content["files"], *content["left_out"], MANIFEST_FILE}
    yield from (path for path in visible_files(Path(folder)) if path.relative_to(folder).as_posix() not in known)


def check_manifest(folder: str | os.PathLike) -> dict[str, Any]:
    """
    Checks that a folder contains exactly the files that its manifest lists, because a library would also load an added
    file. Hidden files are allowed.

    Returns and raises as [`check_listed_files`], and raises a `UserError` for an added file.
    """
    for path in find_added_files(folder):
        raise UserError(f"{path} is not in the manifest of its folder")
    return check_listed_files(folder)
