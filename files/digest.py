"""One hash for everything that is compared by its content."""

import hashlib
from pathlib import Path
from typing import Any


CHUNK_SIZE = 2**20


def digest(*parts: Any) -> str:
    """
    The BLAKE2b hash, in hexadecimal, of bytes-like objects and of the contents of files.

    Args:
        parts (`bytes`, contiguous array or `Path`):
            Hashed one after another; of a `Path` its content, without reading it into memory at once.
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
