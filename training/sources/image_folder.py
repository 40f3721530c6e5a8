"""Stores of the images of records: a folder, or a zip or tar that is read without extracting it."""

import os
import posixpath
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...files.atomic import visible_files
from ...files.user_error import UserError
from .archives import SUFFIXES, ImageArchive


class ImageStore(ABC):
    """Images by name."""

    root: Path

    @abstractmethod
    def find(self, name: str) -> Any:
        """Returns the input of [`open_image`]; raises a `ValueError` if there is no such image."""

    @abstractmethod
    def find_problem(self, name: str) -> str | None:
        """Returns the reason why the image cannot be read, or `None`, without reading it."""

    def identity(self, name: str) -> str:
        """Returns a text that identifies the image in all records that name it."""
        return name

    @abstractmethod
    def state(self, name: str) -> str:
        """A text that changes when the image is replaced, removed or added."""

    def describe(self, name: str) -> str:
        """Returns the name of the image in errors."""
        return str(self.root / name)


class ImageFolder(ImageStore):
    """
    Args:
        root (`Path`):
            Folder that names are relative to. Names may not lead out of it, but links in it may.
        follow_links (`bool`):
            Whether an image may be a symbolic link or in a linked folder.
    """

    def __init__(self, root: Path, follow_links: bool = True):
        self.root = root.resolve()
        self.follow_links = follow_links

    def find(self, name: str) -> Path:
        # `..` is removed from the text: behind a link, the system would follow it out of the folder.
        return Path(os.path.normpath(self.root / name))

    def find_problem(self, name: str) -> str | None:
        full = self.find(name)
        if not full.is_relative_to(self.root):
            return f"its image {name} is outside {self.root}"
        try:
            if not stat.S_ISREG(full.stat().st_mode):
                return f"its image {full} is not a file"
            if not self.follow_links and full.resolve() != full:
                return f"its image {name} is a symbolic link, or in a linked folder, and follow_links is false"
        except (FileNotFoundError, NotADirectoryError):
            return f"its image {full} is missing"
        except (OSError, ValueError, RuntimeError) as error:
            # A name that is too long or that the file system cannot encode, or a cycle of links.
            return f"its image {name!r} cannot be looked up ({error})"
        return None

    def state(self, name: str) -> str:
        try:
            status = os.stat(self.find(name))
        except (OSError, ValueError):  # a name with a null byte raises a ValueError
            return name
        return f"{name}\0{status.st_size}\0{status.st_mtime_ns}"

    def names(self) -> Iterator[str]:
        """All files, in the same order on every machine."""
        yield from sorted(path.relative_to(self.root).as_posix() for path in visible_files(self.root))


class ArchiveFolder(ImageStore):
    """
    A folder in a zip or tar.

    Args:
        archive ([`ImageArchive`]):
            The archive.
        folder (`str`):
            Folder in it that names are relative to; empty for its top.
    """

    def __init__(self, archive: ImageArchive, folder: str):
        self.archive, self.folder = archive, folder
        self.root = archive.path / folder

    def _locate(self, name: str) -> str | None:
        relative = posixpath.normpath(name)
        is_outside = relative.split("/")[0] in ("", "..")
        return None if is_outside else posixpath.join(self.folder, relative)

    def find(self, name: str) -> bytes:
        full = self._locate(name)
        if full is None:
            raise ValueError(f"it is outside {self.root}")
        return self.archive.read(full)

    def find_problem(self, name: str) -> str | None:
        full = self._locate(name)
        if full is None:
            return f"its image {name} is outside {self.root}"
        return None if full in self.archive else f"its image {self.root / name} is missing"

    def state(self, name: str) -> str:
        return f"{name}\0{self.archive.key}"

    def names(self) -> Iterator[str]:
        """All files, in the same order on every machine."""
        start = f"{self.folder}/" if self.folder else ""
        for name in self.archive.names():
            parts = name.removeprefix(start).split("/")
            if name.startswith(start) and not any(part.startswith(".") for part in parts):
                yield "/".join(parts)


def find_image_folder(path: str) -> tuple[Path, str | None]:
    """
    Finds a folder of images, a zip or tar, or a folder inside one, as in `images.zip/train`.

    Returns:
        The folder and `None`, or the archive and the folder in it, which is empty for its top.

    Raises:
        UserError: There is neither.
    """
    full = Path(os.path.abspath(path))
    for parent in (full, *full.parents):
        if parent.is_dir():
            break
        if parent.suffix.lower() in SUFFIXES and parent.is_file():
            folder = full.relative_to(parent).as_posix()
            return parent, "" if folder == "." else folder
    if full.is_file():
        raise UserError(
            f"The image folder {path} is a file; name a folder, or a .zip or .tar, which are read in place."
        )
    if not full.is_dir():
        raise UserError(f"There is no image folder {path}.")
    return full, None


def open_image_folder(path: str, follow_links: bool = True) -> ImageFolder | ArchiveFolder:
    """
    Opens the images that [`find_image_folder`] finds.

    Raises:
        UserError: There are none, or the archive cannot be read in place.
    """
    found, folder = find_image_folder(path)
    return ImageFolder(found, follow_links) if folder is None else ArchiveFolder(ImageArchive(found), folder)
