"""A folder or file has its final name only when complete; a kill at any moment leaves the old one or the new one."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hawaii.files import atomic
from hawaii.files.atomic import (
    atomic_file,
    atomic_folder,
    read_json,
    replace_folder,
    visible_files,
    write_json,
    write_text,
)
from hawaii.files.user_error import UserError
from hawaii.tests.folders import contents


def make(folder, **files):
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def test_a_folder_gets_its_name_when_the_block_ends(tmp_path):
    with atomic_folder(tmp_path / "deep" / "final") as folder:
        (folder / "file").write_text("new")
        assert not (tmp_path / "deep" / "final").exists()
    assert contents(tmp_path / "deep" / "final") == {"file": b"new"}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["final"]


def test_an_existing_folder_is_replaced_and_not_merged(tmp_path):
    make(tmp_path / "final", old="old", file="old")
    with atomic_folder(tmp_path / "final") as folder:
        (folder / "file").write_text("new")
        assert contents(tmp_path / "final") == {"old": b"old", "file": b"old"}
    assert contents(tmp_path / "final") == {"file": b"new"}
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


@pytest.mark.parametrize("error", [OSError("No space left on device"), KeyboardInterrupt(), SystemExit(1)])
@pytest.mark.parametrize("has_old", [False, True])
def test_a_failed_block_keeps_the_old_folder(tmp_path, error, has_old):
    if has_old:
        make(tmp_path / "final", file="old")
    with pytest.raises(type(error)), atomic_folder(tmp_path / "final") as folder:
        (folder / "file").write_text("half")
        raise error
    assert [path.name for path in tmp_path.iterdir()] == ["final"] * has_old
    assert not has_old or contents(tmp_path / "final") == {"file": b"old"}


def test_leftovers_of_a_kill_are_removed(tmp_path):
    make(tmp_path / "final.incomplete", file="half", stale="half")
    make(tmp_path / "final.incomplete.old", file="older")
    make(tmp_path / "final", file="old")
    with atomic_folder(tmp_path / "final") as folder:
        (folder / "file").write_text("new")
    assert contents(tmp_path / "final") == {"file": b"new"}
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_an_old_folder_that_a_kill_left_renamed_is_restored(tmp_path):
    make(tmp_path / "final.incomplete.old", file="old")
    make(tmp_path / "final.incomplete", file="new")
    with pytest.raises(ValueError), atomic_folder(tmp_path / "final"):
        raise ValueError
    assert contents(tmp_path / "final") == {"file": b"old"}


# Kills itself at the n-th call that changes a folder.
REPLACE_AND_DIE = """
import os, signal, sys
from pathlib import Path
from hawaii.files.atomic import atomic_folder
count = 0

def watch(event, arguments):
    global count
    if event.startswith(("open", "os.", "shutil.")) and arguments and "final" in str(arguments[0]):
        count += 1
        if count == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(watch)
with atomic_folder(sys.argv[1]) as folder:
    for name in "ab":
        (folder / name).write_text("new")
"""


@pytest.mark.parametrize("number", range(1, 16))
def test_a_kill_at_any_moment_leaves_the_old_folder_or_the_new_one(tmp_path, number):
    final = make(tmp_path / "final", a="old", b="old")
    package = Path(atomic.__file__).parents[2]
    finished = subprocess.run(
        [sys.executable, "-c", REPLACE_AND_DIE, str(final), str(number)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")])},
    )
    assert finished.returncode in (0, -9)
    if not final.exists():
        final = tmp_path / "final.incomplete.old"  # between two renames
    assert contents(final) in ({"a": b"old", "b": b"old"}, {"a": b"new", "b": b"new"})
    with atomic_folder(tmp_path / "final") as folder:
        (folder / "a").write_text("newest")
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_files_are_flushed_to_disk_before_the_folder_is_renamed(tmp_path, monkeypatch):
    source = make(tmp_path / "source", a="1", b="2")
    make(source / "deep", c="3")
    events = []
    fsync, rename = os.fsync, Path.rename
    monkeypatch.setattr(
        atomic.os, "fsync", lambda file: events.append(os.readlink(f"/proc/self/fd/{file}")[-1]) or fsync(file)
    )
    monkeypatch.setattr(Path, "rename", lambda self, target: events.append("rename") or rename(self, target))
    replace_folder(source, tmp_path / "final")
    assert sorted(events[:3]) == ["a", "b", "c"]
    assert events[3:] == ["rename"]


def test_json_is_indented_and_keeps_non_ascii_characters(tmp_path):
    write_json(tmp_path / "values.json", {"name": "Čapek", "numbers": [1, 2]})
    text = (tmp_path / "values.json").read_text(encoding="utf-8")
    assert "Čapek" in text and text.endswith("}\n") and "\n  " in text
    assert read_json(tmp_path / "values.json") == {"name": "Čapek", "numbers": [1, 2]}


@pytest.mark.parametrize(
    ("data", "problem"),
    [(b"{", "it is not JSON: "), (b"\xff\xfe", "it is not JSON: "), (b"[]", "it is not a JSON object")],
)
def test_a_damaged_json_file_is_named(tmp_path, data, problem):
    (tmp_path / "values.json").write_bytes(data)
    with pytest.raises(UserError, match=rf"values\.json is damaged: {problem}"):
        read_json(tmp_path / "values.json")


def test_an_interrupted_file_keeps_the_old_content(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_file(path) as incomplete:
        incomplete.write_text("ne")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with atomic_file(path) as incomplete:
        incomplete.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_text(path, "old")
    original = Path.write_text

    def write_half(self, text, **kwargs):
        original(self, text[:2], **kwargs)
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_text", write_half)
    with pytest.raises(OSError):
        write_text(path, "new text")
    assert path.read_text() == "old"


def test_values_that_json_cannot_represent_keep_the_old_file(tmp_path):
    write_json(tmp_path / "values.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "values.json", {"a": object()})
    assert json.loads((tmp_path / "values.json").read_text()) == {"a": 1}
    assert shutil.os.listdir(tmp_path) == ["values.json"]


def test_hidden_files_and_linked_folders_are_skipped(tmp_path):
    folder = make(tmp_path / "folder", b="", a="", **{".gitattributes": ""})
    make(folder / "deep", c="", **{".lock": ""})
    make(folder / ".cache", d="")
    (folder / "link").symlink_to(make(tmp_path / "elsewhere", e=""))
    assert [path.relative_to(folder).as_posix() for path in visible_files(folder)] == ["a", "b", "deep/c"]


def test_two_writers_of_a_file_do_not_disturb_each_other(tmp_path):
    path = tmp_path / "file"
    with atomic_file(path) as first, atomic_file(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first" and list(tmp_path.iterdir()) == [path]


def test_a_file_is_flushed_to_disk_before_it_is_renamed(tmp_path, monkeypatch):
    events = []
    replace = Path.replace
    monkeypatch.setattr(atomic.os, "fsync", lambda file: events.append(os.fstat(file).st_size))
    monkeypatch.setattr(Path, "replace", lambda *paths: events.append("replace") or replace(*paths))
    write_text(tmp_path / "file", "1234")
    assert events == [4, "replace"]


def test_a_leftover_of_a_killed_process_is_removed_after_a_day(tmp_path):
    old, new = (tmp_path / f"a[b].json.{digit * 32}.incomplete" for digit in "01")
    for path in (old, new):
        path.touch()
    os.utime(old, (0, 0))
    write_text(tmp_path / "a[b].json", "{}")
    assert not old.exists() and new.exists()
