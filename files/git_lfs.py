"""Git LFS pointers: small text files that a clone without Git LFS contains instead of each large file."""

from pathlib import Path

from .user_error import UserError


POINTER = b"version https://git-lfs.github.com/spec/"


def check_is_no_pointer(path: Path) -> None:
    """Raises a `UserError` if a file is a Git LFS pointer."""
    with path.open("rb") as file:
        if file.read(len(POINTER)) == POINTER:
            raise UserError(
                f"{path} is a Git LFS pointer, a small text instead of the file itself: run `git lfs pull` in its "
                "folder, or download the file."
            )
