"""Keeps two runs from writing to one folder at the same time."""

import fcntl
import logging
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ..files.run_contents import LOCK_FILE
from ..files.user_error import UserError, find_obstacle
from ..files.write_errors import explain_write_errors
from .data.processes import decide_once


logger = logging.getLogger(__name__)


class RunLock:
    """
    Locks the folder of a run inside a `with` block. Every process of the run must enter the block.

    The lock belongs to the main process alone, not to the workers that it forks, so it ends with that process even if
    the process is killed.

    Args:
        run_folder (`Path`):
            Folder of the run; created if it does not exist.
        subfolders (`Sequence[Path]`):
            Folders that the run will create in it.

    Raises:
        UserError: another run uses the folder, or a file is at the place of a folder.
    """

    def __init__(self, run_folder: Path, subfolders: Sequence[Path]):
        self._run_folder = run_folder
        self._subfolders = subfolders
        self._lock: int | None = None

    def __enter__(self) -> "RunLock":
        decide_once(self._acquire)
        return self

    def __exit__(self, *error) -> None:
        if self._lock is not None:
            os.truncate(self._lock, 0)
            with suppress(OSError):  # the folder was removed
                if [path.name for path in self._run_folder.iterdir()] == [LOCK_FILE]:  # the run was refused
                    (self._run_folder / LOCK_FILE).unlink()
                    self._run_folder.rmdir()
            os.close(self._lock)

    def _acquire(self) -> None:
        for folder in (self._run_folder, *self._subfolders):
            if obstacle := find_obstacle(folder):
                raise UserError(
                    f"{obstacle} is not a folder, but the run needs a folder there: move it away, or name another "
                    "output_dir."
                )
        with explain_write_errors(self._run_folder, "run the same command again."):
            self._run_folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self._run_folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError) as error:
                owner = os.pread(self._lock, 1000, 0).decode(errors="replace") or "another process"
                os.close(self._lock)
                self._lock = None
                raise UserError(
                    f"{self._run_folder} is used by another `hawaii train` ({owner}): wait until it has ended, stop "
                    "it, or name another output_dir."
                ) from error
            except OSError as error:
                logger.warning("%s cannot be locked (%s): do not start a second run in it.", self._run_folder, error)
            os.truncate(self._lock, 0)
            os.pwrite(self._lock, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
