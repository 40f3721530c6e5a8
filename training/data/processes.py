"""Results that must be equal in all processes of a run, and processes that end with their parent."""

import ctypes
import signal
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from ...files.user_error import UserError


T = TypeVar("T")
PR_SET_PDEATHSIG = 1  # of Linux's prctl
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def end_with_parent() -> None:
    """Lets Linux send SIGTERM to this process once its parent is killed."""
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def decide_once(function: Callable[..., T], *args) -> T:
    """Calls a function on the main process alone; every process gets its result, or raises its `UserError`."""
    answer: list[Any] = [None, None]
    if PartialState().is_main_process:
        try:
            answer[0] = function(*args)
        except (UserError, OSError) as error:
            answer[1] = error
    if PartialState().num_processes > 1:
        broadcast_object_list(answer)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]
