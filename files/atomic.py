"""Folders and files that get their final name only when they are complete, and the visible files of a folder."""

import glob
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .git_lfs import check_is_no_pointer
from .user_error import UserError, explain_errors


MAX_SECONDS = 24 * 3600  # without a change, after which the process that wrote a file must have ended
OLD_SUFFIX = ".incomplete.old"  # of a folder that is about to be removed


def _old_name(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}{OLD_SUFFIX}")


def remove_leftovers(folder: Path, pattern: str) -> None:
    """Removes incomplete files of killed processes."""
    for leftover in folder.glob(pattern):
        try:
            if time.time() - leftover.stat().st_mtime > MAX_SECONDS:
                leftover.unlink()
        except OSError:
            continue  # of another user, or removed by another process


def remove_folder(folder: Path) -> None:
    """
    Renames a folder, then removes it: a kill in between leaves no folder of that name with files missing, and at most
    a leftover named `*.incomplete.old`.
    """
    folder.rename(_old_name(folder))
    shutil.rmtree(_old_name(folder), ignore_errors=True)


def replace_folder(source: Path, final: Path) -> None:
    """Flushes the files of `source` to disk and renames it to `final`, replacing any folder of that name."""
    for path in source.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    old = _old_name(final)
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    source.rename(final)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def atomic_folder(final: str | os.PathLike) -> Iterator[Path]:
    """
    Yields an empty folder, which is renamed to `final` if the block succeeds and removed if it raises.

    An existing folder of that name is replaced. A kill at any moment leaves either the old folder or the new one, and
    at most leftovers named `*.incomplete*`, which the next attempt removes. Between the two renames the old folder has
    such a name too; the next attempt restores it.
    """
    final = Path(final)
    incomplete, old = final.with_name(f"{final.name}.incomplete"), _old_name(final)
    if old.exists() and not final.exists():
        old.rename(final)
    shutil.rmtree(incomplete, ignore_errors=True)
    incomplete.mkdir(parents=True)
    try:
        yield incomplete
    except BaseException:
        shutil.rmtree(incomplete, ignore_errors=True)
        raise
    replace_folder(incomplete, final)


@contextmanager
def atomic_file(final: str | os.PathLike) -> Iterator[Path]:
    """
    Yields the path of a file to write, which is renamed to `final` if the block succeeds and removed if it raises.

    Several processes may write the same file. A kill at any moment leaves the old file or the new one, and at most a
    leftover named `*.incomplete`, which is removed after a day when the file is written again.
    """
    final = Path(final)
    incomplete = final.with_name(f"{final.name}.{uuid.uuid4().hex}.incomplete")
    final.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(final.parent, f"{glob.escape(final.name)}.{'[0-9a-f]' * 32}.incomplete")
    try:
        yield incomplete
        with incomplete.open("rb") as file:
            os.fsync(file.fileno())
        incomplete.replace(final)
    except BaseException:
        incomplete.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically."""
    with atomic_file(path) as incomplete:
        incomplete.write_text(text, encoding="utf-8")


def write_json(path: Path, values: dict) -> None:
    """Writes a JSON file atomically."""
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict:
    """
    Reads a JSON file that contains one object.

    Raises:
        UserError: the file is not JSON, or not an object.
    """
    check_is_no_pointer(path)
    with explain_errors(f"{path} is damaged: it is not JSON"):
        values = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise UserError(f"{path} is damaged: it is not a JSON object.")
    return values


def visible_files(folder: Path) -> Iterator[Path]:
    """
    Yields every file under a folder in a fixed order. Hidden files and folders are skipped, because downloads and
    version control keep their own files there, and links to folders are not followed.
    """
    for path, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(path, name) for name in sorted(names) if not name.startswith("."))
