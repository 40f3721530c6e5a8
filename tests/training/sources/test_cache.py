"""An incomplete file of the cache is an error, and errors of the data are not reported as errors of the cache."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from hawaii.files import atomic
from hawaii.files.user_error import UserError
from hawaii.tests.tiny.waiting import HANG_SECONDS
from hawaii.tests.training.sources.test_archives import pack
from hawaii.training.sources import archives, cache, dataset_rows
from hawaii.training.sources.archives import ImageArchive
from hawaii.training.sources.cache import cached_file, read_cached
from hawaii.training.sources.record import Record
from hawaii.training.sources.record_table import save_records


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(cache.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "hawaii"


def write_nothing(path: Path) -> None:
    path.touch()


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-8],  # between batches, where Arrow sees no error
        lambda content: content[: len(content) // 2],
        lambda content: content[:100],
        lambda content: b"",
        lambda content: bytes(len(content)),  # as after a crash of the machine
        lambda content: bytes(len(content) - 8) + content[-8:],
    ],
)
def test_a_damaged_table_or_index_is_named_and_made_again_after_its_removal(tmp_path, folder, damage):
    pack(tmp_path / "a.zip", {f"{number}.png": b"" for number in range(10)})
    records = [Record(number, ()) for number in range(12_000)]
    for read in (lambda: list(save_records("x", records, "")), lambda: list(ImageArchive(tmp_path / "a.zip").names())):
        expected = read()
        (path,) = folder.glob("*.arrow")
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(UserError, match=rf"The file {path} of the cache is damaged \(.*\); remove it"):
            read()
        path.unlink()
        assert read() == expected
        path.unlink()


def test_a_file_is_on_the_disk_before_it_has_its_name(monkeypatch):
    calls = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: calls.append(os.fstat(descriptor).st_size))
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda *paths: calls.append("replace") or replace(*paths))
    cached_file("a.json", lambda path: path.write_text("1234"))
    assert calls == [4, "replace"]


def test_old_files_of_killed_processes_are_removed(folder):
    cached_file("a", write_nothing)
    old, new = (folder / f".{name}.{'0f' * 16}" for name in ("a.arrow", "b"))
    others = [folder / ".hidden", folder / "c.arrow.lock"]
    for path in (old, new, *others):
        path.touch()
    for path in (old, *others):
        os.utime(path, (0, time.time() - atomic.MAX_SECONDS - 60))
    cached_file("a", write_nothing)
    assert old.exists()  # nothing was written
    cached_file("d", write_nothing)
    assert not old.exists() and new.exists() and all(path.exists() for path in others)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPYxx", b"PK\x03\x04", b"\x93NUMPY\x01\x00v\x00{'descr': '<i4', "])
def test_a_damaged_array_is_made_again(folder, content):
    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.save(file, np.arange(3))

    (folder / "a.npy").parent.mkdir(parents=True)
    (folder / "a.npy").write_bytes(content)
    for _ in range(2):
        assert read_cached("a.npy", write, np.load).tolist() == [0, 1, 2]
        write = None


def test_a_killed_writer_leaves_no_file_of_that_name(folder):
    code = (
        "import os, sys; from pathlib import Path\n"
        "from hawaii.training.sources import cache\n"
        f"cache.config.HF_DATASETS_CACHE = {str(folder.parent)!r}\n"
        "cache.cached_file('a', lambda path: path.write_text('half') and os._exit(9))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=HANG_SECONDS).returncode == 9
    assert cached_file("a", lambda path: path.write_text("whole")).read_text() == "whole"


@pytest.mark.parametrize(
    "error", [OSError("Arrow"), OSError(errno.EIO, "Input/output error"), FileNotFoundError(2, "x", "/data")]
)
def test_an_error_of_the_data_is_none_of_the_cache(error):
    def write(path: Path) -> None:
        raise error

    with pytest.raises(OSError) as raised:
        cached_file("a", write)
    assert raised.value is error


def test_a_cache_that_may_not_be_made_is_named(tmp_path, folder, monkeypatch):
    def mkdir(self, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path))

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with pytest.raises(UserError, match=rf"The cache {folder} cannot be written \(.*set HF_DATASETS_CACHE"):
        cached_file("a", write_nothing)


def test_a_data_set_or_archive_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    class Rows:
        column_names = ("messages",)

        def with_format(self, name):
            return self

        def __len__(self):
            return 1

        def __getitem__(self, rows):
            raise OSError("Input/output error")

    with pytest.raises(UserError, match="The data set there cannot be loaded: Input/output error"):
        save_records("rows", dataset_rows._iterate_records(Rows(), "there"), "there")

    def fail(path):
        raise OSError(errno.EIO, "Input/output error")

    path = pack(tmp_path / "a.zip", {"a.png": b""})
    monkeypatch.setattr(archives, "_list_zip", fail)
    with pytest.raises(OSError, match=rf"Input/output error: '{path}'"):
        ImageArchive(path)
