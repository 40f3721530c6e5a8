"""Errors of a full disk, a quota or a broken file system, as one sentence that names the path."""

import errno
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

# Errors for which more space is the way out.
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _number(error: BaseException) -> int | None:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    # In brackets from another process, or from several files.
    match = RUST_ERROR.search(str(error)) or re.search(r"\[Errno (\d+)\]", str(error))
    return int(match[1]) if match else None


def describe_write_error(error: BaseException, path: Path) -> tuple[str, str] | None:
    """
    Describes an error that occurred while something under `path` was written.

    Returns:
        `tuple[str, str]`, *optional*: the problem and the first step out of it, such as `PATH could not be written (No
        space left on device; 4,096 bytes are free there)` and `make room`, or `PATH could not be completed (Permission
        denied: FILE)` and `correct this`; `None` if it is not an error of the file system.
    """
    number = _number(error)
    if number in NO_SPACE or (number is None and TORCH_ERROR.search(str(error))):
        reason = "a file could only be written in part" if number is None else os.strerror(number)
        place = next((folder for folder in (path, *path.parents) if folder.exists()), Path("/"))
        free = shutil.disk_usage(place).free
        return f"{path} could not be written ({reason}; {free:,} bytes are free there)", "make room"
    if number is None and not isinstance(error, OSError | SafetensorError):
        return None
    reason = str(error) if number is None else os.strerror(number)
    name = getattr(error, "filename", None)
    return f"{path} could not be completed ({reason}{'' if name is None else f': {name}'})", "correct this"


@contextmanager
def explain_write_errors(path: Path, remedy: str) -> Iterator[None]:
    """
    Explains the errors of a block that writes `path`.

    Raises:
        UserError: the file system reports an error. The message is one sentence that names the path and ends with the
            first step, "and" and `remedy`.
        FileExistsError, NotADirectoryError: unchanged, because [`describe_error`] has another remedy.
    """
    try:
        yield
    except (UserError, FileExistsError, NotADirectoryError):
        raise
    except Exception as error:  # Rust libraries raise it for a full disk; other errors are raised again
        if (problem := describe_write_error(error, path)) is None:
            raise
        raise UserError(f"{': '.join(problem)} and {remedy}") from error
