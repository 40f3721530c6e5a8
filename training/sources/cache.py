"""Files that are made once from data and named by a digest of their inputs, next to the caches of `datasets`."""

import errno
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
from datasets import config
from filelock import FileLock

from ...files.atomic import remove_leftovers
from ...files.user_error import UserError
from ...files.write_errors import NO_SPACE


# Numbers of an `OSError` of writing, if it names no file; any other number means an error of reading the data.
WRITE_ERRORS = {*NO_SPACE, errno.EROFS, errno.EACCES, errno.EPERM}
T = TypeVar("T")
ARROW_END = b"\xff\xff\xff\xff\0\0\0\0"  # of a stream; a file that is cut off between batches lacks it


def cache_path(name: str) -> Path:
    """Returns the path of a file of the cache, which may not exist yet."""
    return Path(config.HF_DATASETS_CACHE) / "hawaii" / name


def _check(path: Path) -> None:
    """Checks that an Arrow file has its end, and that its batches can be mapped into memory."""
    if path.suffix != ".arrow":
        return
    try:
        with pa.memory_map(str(path)) as file:
            file.seek(max(0, file.size() - len(ARROW_END)))
            if file.read() != ARROW_END:
                raise pa.ArrowInvalid("it has no end")
            file.seek(0)
            pa.ipc.open_stream(file).read_all()
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"The file {path} of the cache is damaged ({error}); remove it, and it is made again from the data."
        ) from error


def _write(path: Path, write: Callable[[Path], None], is_damaged: bool = False) -> None:
    incomplete = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if is_damaged or not path.is_file():
                remove_leftovers(path.parent, f".*.{'[0-9a-f]' * 32}")
                write(incomplete)
                with incomplete.open("rb") as file:
                    os.fsync(file.fileno())
                os.replace(incomplete, path)
    except OSError as error:
        named = Path(str(error.filename))
        is_own = named.is_relative_to(path.parent) or named in path.parents
        if not is_own and (error.filename is not None or error.errno not in WRITE_ERRORS):
            raise
        raise UserError(
            f"The cache {path.parent} cannot be written ({error}); set HF_DATASETS_CACHE to a folder with space."
        ) from error
    finally:
        incomplete.unlink(missing_ok=True)


def cached_file(name: str, write: Callable[[Path], None]) -> Path:
    """
    Returns a file of the cache, which one process writes and all others wait for.

    Args:
        name (`str`):
            Name of the file, which contains the digest of everything that its content depends on.
        write (`Callable[[Path], None]`):
            Writes the file to the given path. The file gets its name when it is complete.

    Raises:
        UserError: The cache cannot be written, or the file is a damaged Arrow file. The message names the file and the
            remedy.
        OSError: `write` cannot read the data; unchanged.
    """
    path = cache_path(name)
    if not path.is_file():
        _write(path, write)
    _check(path)
    return path


def read_cached(name: str, write: Callable[[Path], None], read: Callable[[Path], T]) -> T:
    """Reads a file of [`cached_file`]. If it is damaged, as after a crash of the machine, it is made again."""
    path = cached_file(name, write)
    try:
        return read(path)
    except Exception:  # libraries raise errors of many types, such as `EOFError` for an empty file
        _write(path, write, is_damaged=True)
        return read(path)
