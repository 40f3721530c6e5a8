"""Waits for other processes. The limit ends a test that hangs; it claims nothing about time on a busy machine."""

import os
import select
import time
from collections.abc import Callable
from subprocess import Popen


HANG_SECONDS = 300


def wait_until_gone(process: int) -> None:
    """Waits until a process that is not a child of the test has ended."""
    try:
        descriptor = os.pidfd_open(process)
    except ProcessLookupError:
        return
    try:
        assert select.select([descriptor], [], [], HANG_SECONDS)[0], f"process {process} still exists"
    finally:
        os.close(descriptor)


def wait_until(condition: Callable[[], bool], command: Popen) -> None:
    """
    Waits until a condition is true, which a command brings about.

    Raises:
        AssertionError: The command ended before, or hangs and was killed; with what it printed.
    """
    end = time.monotonic() + HANG_SECONDS
    while True:
        status = command.poll()  # before the condition, which its last act may make true
        if condition():
            return
        if status is not None or time.monotonic() > end:
            command.kill()
            output, _ = command.communicate()
            raise AssertionError(f"the command {'hangs' if status is None else 'ended'}: {output}")
        time.sleep(0.05)
