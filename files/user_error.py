"""The one error for whatever a user can correct."""

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """
    Raised for a wrong recipe, argument, file, record or checkpoint. The message is one or more full sentences that
    name the value and the way to correct it: `hawaii` prints it without a traceback and exits with status 2.

    Any other exception, except those of the operating system, is a bug, and `hawaii` shows its traceback.
    """


@contextmanager
def explain_errors(
    problem: str | None = None, types: type[Exception] | tuple[type[Exception], ...] = Exception
) -> Iterator[None]:
    """
    Re-raises any library error as `UserError(f"{problem}: ...")`, chaining the original.

    Args:
        problem (`str`, *optional*):
            What could not be done, with the name of the file, record or checkpoint: the start of the sentence. Without
            it the error's own message is the sentence, as for those of the model and the processor.
        types (`type` or `tuple[type, ...]`, *optional*, defaults to `Exception`):
            Which errors are re-raised.

    Raises:
        OSError: unchanged; it names its file already.
        UserError: unchanged, or in place of any other error.
    """
    try:
        yield
    except (OSError, UserError):
        raise
    except types as error:
        reason = textwrap.shorten(str(error) or type(error).__name__, 400)
        raise UserError(reason if problem is None else f"{problem}: {reason}") from error
