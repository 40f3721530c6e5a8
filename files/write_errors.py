"""Errors of a full disk, a quota or a broken file system, as one sentence that names the path."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from .user_error import UserError


# Errors of Rust libraries (safetensors, tokenizers), some of which are plain `Exception`s.
RUST_ERROR = re.compile(r"os error (\d+)")
# Errors of torch's archive writer, which do not contain the reason.
TORCH_ERROR = re.compile(r"PytorchStreamWriter|inline_container|iostream error|file write failed")


def _reason(error: BaseException) -> str | None:
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    if match := RUST_ERROR.search(str(error)):
        return os.strerror(int(match[1]))
    if match := re.search(r"\[Errno (\d+)\]", str(error)):  # from another process, or from several files
        return os.strerror(int(match[1]))
    if TORCH_ERROR.search(str(error)):
        return "a file could only be written in part"
    return str(error) if isinstance(error, OSError | SafetensorError) else None


def describe_write_error(error: BaseException, path: Path) -> str | None:
    """
    Describes an error that occurred while something under `path` was written, such as `PATH could not be written (No
    space left on device; 4,096 bytes are free there)`; `None` if it is not an error of the file system.
    """
    reason = _reason(error)
    if reason is None:
        return None
    place = next((folder for folder in (path, *path.parents) if folder.exists()), Path("/"))
    return f"{path} could not be written ({reason}; {shutil.disk_usage(place).free:,} bytes are free there)"


@contextmanager
def explain_write_errors(path: Path, remedy: str) -> Iterator[None]:
    """
    Explains the errors of a block that writes `path`.

    Raises:
        UserError: the file system reports an error. The message is one sentence that names the path and ends with
            `remedy`.
        FileExistsError, NotADirectoryError: unchanged, because [`describe_error`] has another remedy.
    """
    try:
        yield
    except (UserError, FileExistsError, NotADirectoryError):
        raise
    except Exception as error:  # Rust libraries raise it for a full disk; other errors are raised again
        if (problem := describe_write_error(error, path)) is None:
            raise
        raise UserError(f"{problem}: {remedy}") from error
