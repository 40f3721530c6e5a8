"""Who works on what, where any number of processes share a folder."""

import os
from pathlib import Path

from filelock import lock_descriptor


class Claim:
    """
    A file that one process at a time holds, with those it started and gave `descriptor` to. It is free again when none
    of them lives, however they ended: what goes on after its starter was killed is not begun a second time beside it.

    Args:
        path (`Path`):
            The file. It stays: removing it would let two hold it.
    """

    def __init__(self, path: Path):
        self.path = path
        self.descriptor: int | None = None

    def take(self, wait: bool = False) -> bool:
        """Takes it if nobody has it, or waits until then; whether it is held now."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT)
        if lock_descriptor(descriptor, blocking=wait):
            self.descriptor = descriptor
        else:
            os.close(descriptor)
        return self.descriptor is not None

    def __enter__(self):
        self.take(wait=True)
        return self

    def __exit__(self, *error):
        self.release()

    def release(self) -> None:
        """Lets go, as far as this process is concerned."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None
