"""A command in a pseudo-terminal, and what a user types and sees there."""

import fcntl
import os
import pty
import select
import signal
import subprocess
import termios
import time
from pathlib import Path

from hawaii.tests.tiny.waiting import HANG_SECONDS


CTRL_C = "\x03"


def _take_terminal() -> None:
    """Makes standard input the terminal whose Ctrl-C this process gets, even if its parent ignores interrupts."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class PseudoTerminal:
    """Starts a command. It ends with the `with` block at the latest."""

    def __init__(self, command: list[str]):
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=_take_terminal,
            env={**os.environ, "TERM": "dumb", "OMP_NUM_THREADS": "1"},
        )
        os.close(slave)
        self.unread = ""

    def __enter__(self) -> "PseudoTerminal":
        return self

    def __exit__(self, *error) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def interrupt_prompt(self) -> None:
        """
        Types Ctrl-C where the command has shown all it can and waits for a key. Python notes an interrupt that comes
        between the prompt and this wait, but handles it only at the next key.
        """
        deadline = time.monotonic() + HANG_SECONDS
        status = Path(f"/proc/{self.process.pid}/stat")
        while status.read_text().rpartition(")")[2].split()[0] != "S":  # its main thread sleeps
            assert self.process.poll() is None, f"the command ended after {self.unread!r}"
            assert time.monotonic() < deadline, f"the command never waits for a key after {self.unread!r}"
            time.sleep(0.001)
        self.type(CTRL_C)

    def read_until(self, text: str) -> str:
        """Waits until the terminal shows a text; returns everything before it that was not read yet."""
        deadline = time.monotonic() + HANG_SECONDS
        while text not in self.unread:
            is_readable, _, _ = select.select([self.master], [], [], max(0, deadline - time.monotonic()))
            assert is_readable, f"the terminal does not show {text!r} after {self.unread!r}"
            try:
                self.unread += os.read(self.master, 4096).decode().replace("\r\n", "\n")
            except OSError:  # its last process has ended
                raise AssertionError(f"the command ended without {text!r} after {self.unread!r}") from None
        before, _, self.unread = self.unread.partition(text)
        return before

    def wait(self) -> int:
        """Returns the exit status of the command."""
        return self.process.wait(HANG_SECONDS)
