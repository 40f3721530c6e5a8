"""The class of errors that a user can correct."""

import os
import re
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


# A data loader's worker passes its error on as text; the last line is the message.
WORKER_ERROR = re.compile(
    r"Caught UserError in DataLoader worker process \d+\.\n.*^[\w.]*UserError: (.*)", re.DOTALL | re.M
)


class UserError(ValueError):
    """
    Raised for a wrong recipe, argument, file, record or checkpoint. The message is one or more full sentences that
    name the value and how to correct it: `hawaii` prints it without a traceback and exits with status 2.

    Any other exception, except those of the operating system, is a bug, and `hawaii` shows its traceback.
    """


class Stopped(SystemExit):
    """
    Raised when a signal has stopped a command and everything that the command needs to continue is saved. `hawaii`
    prints the message and exits with status 75, the `EX_TEMPFAIL` of `sysexits.h`: the same command continues. Like
    every `SystemExit`, it is not an `Exception`, so handlers of errors do not catch it.
    """

    STATUS = 75

    def __init__(self, message: str):
        super().__init__(self.STATUS)
        self.message = message

    def __str__(self):
        return self.message


@contextmanager
def explain_errors(
    problem: str | None = None, types: type[Exception] | tuple[type[Exception], ...] = Exception
) -> Iterator[None]:
    """
    Re-raises any library error as `UserError(f"{problem}: ...")`, chaining the original.

    Args:
        problem (`str`, *optional*):
            Start of the message: the failed action and the file, record or checkpoint. Without it the message is the
            error's own, as for errors of the model and the processor, which are full sentences.
        types (`type` or `tuple[type, ...]`, *optional*, defaults to `Exception`):
            Errors to convert.

    Raises:
        OSError: unchanged, because it names its file.
        UserError: unchanged, or in place of any other error.
    """
    try:
        yield
    except (OSError, UserError):
        raise
    except types as error:
        reason = textwrap.shorten(str(error) or type(error).__name__, 400)
        raise UserError(reason if problem is None else f"{problem}: {reason}") from error


def find_obstacle(path: Path) -> Path | None:
    """Finds a file or a broken link at the place of a folder: `path` or a folder above it. `None` if there is none."""
    return next((place for place in (path, *path.parents) if os.path.lexists(place) and not place.is_dir()), None)


def describe_error(error: Exception) -> str | None:
    """One line about an error that the user can correct; `None` if it is a bug."""
    from safetensors import SafetensorError  # a full disk or a damaged file

    if not isinstance(error, UserError | OSError | SafetensorError):
        return None
    message = str(error)
    if in_worker := WORKER_ERROR.fullmatch(message):
        message = in_worker[1]
    if isinstance(error, OSError) and error.filename is not None:
        message = f"{error.strerror}: {error.filename}"
    if isinstance(error, FileExistsError | NotADirectoryError) and error.filename is not None:
        if obstacle := find_obstacle(Path(os.fsdecode(error.filename))):
            message = f"{obstacle} is not a folder, but one is needed there: move it, or name another folder."
    return " ".join(message.split())
