"""The class of errors that a user can correct."""

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager


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
