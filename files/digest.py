"""A hash for comparing contents."""

import hashlib
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
