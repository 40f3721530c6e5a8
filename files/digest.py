"""Hashes for comparing contents."""

import hashlib
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any


CHUNK_SIZE = 2**20


def digest(*parts: Any) -> str:
    """
    Returns the hexadecimal BLAKE2b hash of bytes-like objects and the contents of files.

    Args:
        parts (`bytes`, contiguous array or `Path`):
            Hashed in order. The file of a `Path` is read in chunks.
    """
    hashed = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, Path):
            with part.open("rb") as file:
                while chunk := file.read(CHUNK_SIZE):
                    hashed.update(chunk)
        else:
            hashed.update(part)
    return hashed.hexdigest()


@cache
def _hash_file(path: Path, size: int, changed: int) -> str:
    """The SHA-256 of a file. All stages of a run compare the same models, which are read once."""
    hashed = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_SIZE):
            hashed.update(chunk)
    return hashed.hexdigest()


def hash_file(path: Path) -> str:
    """The SHA-256 of a file. A large file in the cache of the Hub has it as its name and is not read."""
    real = path.resolve()
    if real.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", real.name):
        return real.name
    status = real.stat()
    return _hash_file(real, status.st_size, status.st_mtime_ns)


def digest_files(paths: Iterable[Path]) -> str:
    """
    Returns a hash of the contents of files that may be large. Threads read them, and the Hub's cache is not read; an
    equal copy elsewhere has the same hash.
    """
    with ThreadPoolExecutor() as pool:
        return digest("".join(pool.map(hash_file, paths)).encode())
