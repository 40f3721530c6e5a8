"""Folders and files that appear under their final name only when they are whole, and what a folder holds."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


OLD_SUFFIX = ".incomplete.old"  # of a folder that is to go


def _old_name(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}{OLD_SUFFIX}")


def remove_folder(folder: Path) -> None:
    """
    Removes a folder, which loses its name first: a kill in between leaves none that lacks files, and at most a
    leftover named `*.incomplete.old`.
    """
    folder.rename(_old_name(folder))
    shutil.rmtree(_old_name(folder), ignore_errors=True)


def replace_folder(source: Path, final: Path) -> None:
    """Renames `source` to `final` once its files are on the disk, in place of what stood there."""
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
    Gives an empty folder to write into; it takes the name `final` when the block ends well, and goes when it does not.

    What stood under that name before is replaced. A kill at any moment leaves either the old folder or the new one,
    and at most leftovers named `*.incomplete*`, which the next attempt clears. In the instant between two renames the
    old folder bears such a name too; the next attempt brings it back.
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
    Gives a path to write a file to; it takes the name `final`, in place of what stood there, when the block ends well.

    A kill at any moment leaves the old file or the new one, and at most a leftover named `*.incomplete`.
    """
    final = Path(final)
    incomplete = final.with_name(f"{final.name}.incomplete")
    final.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield incomplete
    except BaseException:
        incomplete.unlink(missing_ok=True)
        raise
    incomplete.replace(final)


def write_text(path: Path, text: str) -> None:
    """Writes a file that is never seen half written."""
    with atomic_file(path) as incomplete:
        incomplete.write_text(text, encoding="utf-8")


def write_json(path: Path, values: dict) -> None:
    """Writes a JSON file that is never seen half written."""
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def visible_files(folder: Path) -> Iterator[Path]:
    """
    Every file under a folder, in a fixed order. What is hidden is left out, for downloads and version control leave
    their own there, and folders that are links are not followed.
    """
    for path, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(path, name) for name in sorted(names) if not name.startswith("."))
