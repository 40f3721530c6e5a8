"""Files made once from data, named by a digest of what they are made of, next to the caches of `datasets`."""

import os
import uuid
from collections.abc import Callable
from pathlib import Path

from datasets import config
from filelock import FileLock

from ...files.user_error import UserError


def cache_path(name: str) -> Path:
    """Returns where a file of the cache is or will be."""
    return Path(config.HF_DATASETS_CACHE) / "hawaii" / name


def cached_file(name: str, write: Callable[[Path], None]) -> Path:
    """
    Returns a file of the cache, which one process writes and all others wait for.

    Args:
        name (`str`):
            Name of the file, which contains the digest of everything that its content depends on.
        write (`Callable[[Path], None]`):
            Writes the file to the given path. It appears under its own name when it is complete.

    Raises:
        UserError: The cache cannot be written; names the file and how to choose another folder.
    """
    path = cache_path(name)
    if path.is_file():
        return path
    incomplete = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.is_file():
                write(incomplete)
                os.replace(incomplete, path)
    except OSError as error:
        if error.filename is not None and not str(error.filename).startswith(str(path.parent)):
            raise  # of the data, which it names
        raise UserError(
            f"The cache {path.parent} cannot be written ({error}); set HF_DATASETS_CACHE to a folder with space."
        ) from error
    finally:
        incomplete.unlink(missing_ok=True)
    return path
