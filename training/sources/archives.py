"""Reads single files of zips and tars without extracting them; the index of names is mapped into memory."""

import os
import posixpath
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from datasets import Dataset

from ...files.digest import digest
from ...files.user_error import UserError, explain_errors
from .cache import cached_file


SUFFIXES = (".zip", ".tar")
VERSION = b"2"  # of the index
NUM_ROWS = 100_000
SCHEMA = pa.schema(
    [("name", pa.string()), ("start", pa.int64()), ("stored", pa.int64()), ("size", pa.int64()), ("crc", pa.int64())]
)
LOCAL_HEADER_SIZE = 30  # of a zip, before the name
NUM_BYTES = 2**20


class Member(NamedTuple):
    """
    A file in an archive.

    Args:
        name (`str`):
            Its normalised path.
        start (`int`):
            Offset of its bytes in a tar, of its local header in a zip.
        stored (`int`), size (`int`):
            Number of bytes in the archive, and without compression.
        crc (`int`):
            Check sum; -1 if the archive has none.
    """

    name: str
    start: int
    stored: int
    size: int
    crc: int = -1


def _normalise(name: str) -> str | None:
    """Returns the path in the archive, or `None` if it leads out of the archive."""
    name = posixpath.normpath(name)
    return None if name.split("/")[0] in ("", "..") else name


def _list_zip(path: Path) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = _normalise(info.filename)
            if info.is_dir() or name is None:
                continue
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & 1:
                raise UserError(
                    f"{path}: {info.filename} is encrypted, or compressed with another method than deflate; write "
                    "the archive again with `zip -0`, or extract it."
                )
            yield Member(name, info.header_offset, info.compress_size, info.file_size, info.CRC)


def _check_end(archive: tarfile.TarFile, path: Path) -> None:
    """Checks that a tar was listed to its end, which is zeros: `tarfile` stops at a damaged header silently."""
    file: Any = archive.fileobj
    file.seek(archive.offset)
    block = file.read(tarfile.BLOCKSIZE)
    is_end = len(block) == tarfile.BLOCKSIZE
    while is_end and block:
        is_end = not block.strip(b"\0")
        block = file.read(NUM_BYTES)
    if not is_end:
        raise UserError(
            f"The tar {path} is cut off or damaged at byte {archive.offset}: there is neither a file nor the "
            "end of the archive, or data follow the end, as in tars joined by `cat`. Copy or write it again."
        )


def _list_tar(path: Path) -> Iterator[Member]:
    links = {}
    members: dict[str, tuple[int, int]] = {}
    with tarfile.open(path, "r:") as archive:
        for info in archive:
            archive.members = []  # otherwise it keeps all members  # pyright: ignore[reportAttributeAccessIssue]
            name = _normalise(info.name)
            if name is None:
                continue
            if info.issym() or info.islnk():
                folder = posixpath.dirname(name) if info.issym() else ""
                links[name] = _normalise(posixpath.join(folder, info.linkname))
            elif info.isreg() and not info.issparse():
                members[name] = (info.offset_data, info.size)
        _check_end(archive, path)
    for name in links:
        target, seen = name, set()
        while target in links and target not in seen:
            seen.add(target)
            target = links[target]
        if target in members:
            members[name] = members[target]
    for name, (start, size) in members.items():
        yield Member(name, start, size, size)


class ImageArchive:
    """
    A zip or tar. Its index is made once, sorted and mapped into memory; any number of processes read from it.

    Args:
        path (`Path`):
            A zip whose files are stored or deflated, or a tar without compression.

    Attributes:
        key (`str`):
            Changes when the archive changes.

    Raises:
        UserError: The archive is damaged, compressed as a whole or empty.
    """

    def __init__(self, path: Path):
        self.path = path.resolve()
        self.is_zip = path.suffix.lower() == ".zip"
        status = self.path.stat()
        self.key = digest(
            VERSION, f"{self.path}\n{status.st_size}\n{status.st_mtime_ns}".encode(errors="surrogateescape")
        )
        self._rows: Any = Dataset.from_file(
            str(cached_file(f"{self.key}.index.arrow", self._write_index))
        ).with_format("arrow")
        self._names = self._rows.data.column("name")
        self._descriptor: int | None = None

    def _write_index(self, index: Path) -> None:
        members = {}
        with explain_errors(
            f"{self.path} cannot be read as a {'zip' if self.is_zip else 'tar without compression'}",
            (zipfile.BadZipFile, tarfile.TarError, NotImplementedError, EOFError, UnicodeError),
        ):
            try:
                for member in _list_zip(self.path) if self.is_zip else _list_tar(self.path):
                    members[member.name.encode(errors="surrogateescape").decode(errors="replace")] = member[1:]
            except OSError as error:
                error.filename = error.filename or str(self.path)  # a read error names no file
                raise
        if not members:
            raise UserError(f"The archive {self.path} has no file.")
        names = sorted(members)
        with pa.OSFile(str(index), "wb") as file, pa.ipc.new_stream(file, SCHEMA) as writer:
            for first in range(0, len(names), NUM_ROWS):
                chunk = names[first : first + NUM_ROWS]
                columns = [chunk, *([members[name][number] for name in chunk] for number in range(4))]
                writer.write_batch(pa.RecordBatch.from_arrays([pa.array(column) for column in columns], schema=SCHEMA))

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_descriptor": None, "_names": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._names = self._rows.data.column("name")

    def _find(self, name: str) -> int | None:
        low, high = 0, len(self._names)
        while low < high:
            middle = (low + high) // 2
            if self._names[middle].as_py() < name:
                low = middle + 1
            else:
                high = middle
        return low if low < len(self._names) and self._names[low].as_py() == name else None

    def __contains__(self, name: str) -> bool:
        return self._find(name) is not None

    def names(self) -> Iterator[str]:
        """All files, sorted."""
        for first in range(0, len(self._names), NUM_ROWS):
            yield from self._names[first : first + NUM_ROWS].to_pylist()

    def _read_bytes(self, start: int, size: int) -> bytes:
        # `pread` does not use the file position, which forked processes share.
        if self._descriptor is None:
            self._descriptor = os.open(self.path, os.O_RDONLY)
        content = os.pread(self._descriptor, size, start)
        if len(content) != size:
            raise ValueError(f"{self.path} has changed or is incomplete")
        return content

    def read(self, name: str) -> bytes:
        """
        Returns the content of a file.

        Raises:
            ValueError: There is no such file, or the archive has changed or is damaged.
        """
        row = self._find(name)
        if row is None:
            raise ValueError(f"{self.path} has no file {name}")
        _, start, stored, size, crc = self._rows[row].to_pylist()[0].values()
        if not self.is_zip:
            return self._read_bytes(start, stored)
        header = self._read_bytes(start, LOCAL_HEADER_SIZE)
        name_and_extra = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        content = self._read_bytes(start + LOCAL_HEADER_SIZE + name_and_extra, stored)
        try:
            if int.from_bytes(header[8:10], "little") == zipfile.ZIP_DEFLATED:
                content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, size + 1)
        except zlib.error:
            content = b""
        if header[:4] != b"PK\x03\x04" or len(content) != size or zlib.crc32(content) != crc:
            raise ValueError(f"{name} in {self.path} has changed or is damaged")
        return content
