"""A folder bears its final name only when it is whole; a kill at any moment leaves the old one or the new one."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hawaii.files import atomic as folders
from hawaii.files.atomic import atomic_file, atomic_folder, replace_folder, visible_files, write_json, write_text
from hawaii.tests.folders import contents


def make(folder, **files):
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def test_a_folder_appears_when_the_block_ends(tmp_path):
    with atomic_folder(tmp_path / "deep" / "final") as folder:
        (folder / "file").write_text("new")
        assert not (tmp_path / "deep" / "final").exists()
    assert contents(tmp_path / "deep" / "final") == {"file": b"new"}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["final"]


def test_what_stood_there_is_replaced_and_not_mixed_in(tmp_path):
    make(tmp_path / "final", old="old", file="old")
    with atomic_folder(tmp_path / "final") as folder:
        (folder / "file").write_text("new")
        assert contents(tmp_path / "final") == {"old": b"old", "file": b"old"}
    assert contents(tmp_path / "final") == {"file": b"new"}
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


@pytest.mark.parametrize("error", [OSError("No space left on device"), KeyboardInterrupt(), SystemExit(1)])
@pytest.mark.parametrize("has_old", [False, True])
def test_a_block_that_fails_leaves_what_was_there(tmp_path, error, has_old):
    if has_old:
        make(tmp_path / "final", file="old")
    with pytest.raises(type(error)), atomic_folder(tmp_path / "final") as folder:
        (folder / "file").write_text("half")
        raise error
    assert [path.name for path in tmp_path.iterdir()] == ["final"] * has_old
    assert not has_old or contents(tmp_path / "final") == {"file": b"old"}


def test_what_a_kill_left_is_cleared(tmp_path):
    make(tmp_path / "final.incomplete", file="half", stale="half")
    make(tmp_path / "final.incomplete.old", file="older")
    make(tmp_path / "final", file="old")
    with atomic_folder(tmp_path / "final") as folder:
        (folder / "file").write_text("new")
    assert contents(tmp_path / "final") == {"file": b"new"}
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_an_old_folder_that_a_kill_left_aside_comes_back(tmp_path):
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
    package = Path(folders.__file__).parents[2]
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


def test_files_are_on_the_disk_before_the_name_is_theirs(tmp_path, monkeypatch):
    source = make(tmp_path / "source", a="1", b="2")
    make(source / "deep", c="3")
    events = []
    fsync, rename = os.fsync, Path.rename
    monkeypatch.setattr(
        folders.os, "fsync", lambda file: events.append(os.readlink(f"/proc/self/fd/{file}")[-1]) or fsync(file)
    )
    monkeypatch.setattr(Path, "rename", lambda self, target: events.append("rename") or rename(self, target))
    replace_folder(source, tmp_path / "final")
    assert sorted(events[:3]) == ["a", "b", "c"]
    assert events[3:] == ["rename"]


def test_json_is_written_for_people_and_for_any_language(tmp_path):
    write_json(tmp_path / "values.json", {"name": "Čapek", "numbers": [1, 2]})
    text = (tmp_path / "values.json").read_text(encoding="utf-8")
    assert "Čapek" in text and text.endswith("}\n") and "\n  " in text
    assert json.loads(text) == {"name": "Čapek", "numbers": [1, 2]}


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


def test_a_file_is_never_seen_half_written(tmp_path, monkeypatch):
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


def test_values_that_are_no_json_leave_the_file_as_it_was(tmp_path):
    write_json(tmp_path / "values.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "values.json", {"a": object()})
    assert json.loads((tmp_path / "values.json").read_text()) == {"a": 1}
    assert shutil.os.listdir(tmp_path) == ["values.json"]


def test_what_is_hidden_and_where_links_lead_is_no_part_of_a_folder(tmp_path):
    folder = make(tmp_path / "folder", b="", a="", **{".gitattributes": ""})
    make(folder / "deep", c="", **{".lock": ""})
    make(folder / ".cache", d="")
    (folder / "link").symlink_to(make(tmp_path / "elsewhere", e=""))
    assert [path.relative_to(folder).as_posix() for path in visible_files(folder)] == ["a", "b", "deep/c"]
