"""A manifest detects every change of its folder, including changes of itself, and reads large files in blocks."""

import hashlib
import json
import os
import shutil

import pytest

from hawaii.files import manifest
from hawaii.files.manifest import check_listed_files, check_manifest, hash_files, read_identity, write_manifest
from hawaii.files.run_contents import MANIFEST_FILE
from hawaii.files.user_error import UserError
from hawaii.tests.folders import DAMAGES, damage


FILES = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 40, "shards/.metadata": b"index", "empty": b""}
IDENTITY = {"step": 3, "options": {"seed": 1, "text": "größer"}}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "folder"
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    write_manifest(folder, IDENTITY)
    return folder


def test_a_folder_that_did_not_change_gives_its_identity(folder):
    assert check_manifest(folder) == IDENTITY == read_identity(folder)
    moved = folder.rename(folder.with_name("moved"))
    assert check_manifest(moved) == IDENTITY
    listed = json.loads((moved / MANIFEST_FILE).read_text())["files"]
    assert {name: entry["size"] for name, entry in listed.items()} == {n: len(content) for n, content in FILES.items()}


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("name", [name for name, content in FILES.items() if content])
def test_every_damage_is_found_and_the_file_named(folder, name, kind):
    damage(folder / name, kind)
    problem = f"lacks {name}" if kind == "missing" else f"{name} is {kind.replace('flipped', 'damaged')}"
    with pytest.raises(UserError, match=problem):
        check_manifest(folder)


def test_a_flipped_bit_is_found_at_every_place_of_the_manifest(folder):
    path = folder / MANIFEST_FILE
    content = path.read_bytes()
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        with pytest.raises(UserError, match=rf"{MANIFEST_FILE} is damaged"):
            check_manifest(folder)
    path.write_bytes(content)
    assert check_manifest(folder) == IDENTITY


@pytest.mark.parametrize("content", ["", "[]", "{}", "3", '{"manifest": "0"}', '{"files": {}, "identity": {}}'])
def test_another_file_of_its_name_is_no_manifest(folder, content):
    (folder / MANIFEST_FILE).write_text(content)
    for check in (check_manifest, read_identity):
        with pytest.raises(UserError, match=f"{MANIFEST_FILE} is {'damaged' if content else 'empty'}"):
            check(folder)
    (folder / MANIFEST_FILE).unlink()
    with pytest.raises(UserError, match=f"folder lacks {MANIFEST_FILE}, so its files cannot be checked"):
        check_manifest(folder)


def forge(folder, change):
    """Writes a manifest with another content, whose own hash is right."""
    content = json.loads((folder / MANIFEST_FILE).read_text())
    del content["manifest"]
    change(content)
    (folder / MANIFEST_FILE).write_text(manifest._to_text(content))


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.pop("files"),
        lambda content: content.pop("identity"),
        lambda content: content.pop("left_out"),
        lambda content: content.update(files=[]),
        lambda content: content["files"].update({"config.json": "a hash"}),
        lambda content: content["files"]["config.json"].update(size="2"),
        lambda content: content["files"]["config.json"].pop("hash"),
        lambda content: content["files"].update({"../outside": content["files"]["empty"]}),
        lambda content: content["files"].update({"/dev/null": content["files"]["empty"]}),
    ],
)
def test_a_forged_manifest_is_damaged_and_never_names_files_elsewhere(folder, change):
    (folder.parent / "outside").touch()
    forge(folder, change)
    for check in (check_manifest, check_listed_files, read_identity):
        with pytest.raises(UserError, match=rf"{MANIFEST_FILE} is damaged"):
            check(folder)


def test_a_manifest_that_is_too_deep_is_damaged(folder):
    (folder / MANIFEST_FILE).write_text("[" * 100_000)
    with pytest.raises(UserError, match=rf"{MANIFEST_FILE} is damaged"):
        read_identity(folder)


def test_an_added_file_is_found_unless_it_is_hidden(folder):
    (folder / ".nfs0001").write_text("of a network file system")
    assert check_manifest(folder) == IDENTITY
    (folder / "shards" / "vocab.json").write_text("{}")
    with pytest.raises(UserError, match="shards/vocab.json is not in the manifest of its folder"):
        check_manifest(folder)
    assert check_listed_files(folder) == IDENTITY


def test_a_file_that_is_left_out_may_change(folder):
    write_manifest(folder, IDENTITY, left_out=["config.json"])
    (folder / "config.json").write_text("other")
    assert check_manifest(folder) == IDENTITY
    (folder / "config.json").unlink()
    assert check_manifest(folder) == IDENTITY


def test_a_folder_in_the_place_of_a_file_is_found(folder):
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    with pytest.raises(UserError, match="lacks config.json"):
        check_manifest(folder)


@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 250, 300])
def test_the_hash_is_that_of_the_hashes_of_the_blocks(tmp_path, monkeypatch, size):
    monkeypatch.setattr(manifest, "BLOCK_SIZE", 100)
    monkeypatch.setattr(manifest, "CHUNK_SIZE", 7)
    content = os.urandom(size)
    (tmp_path / "file").write_bytes(content)
    blocks = [content[start : start + 100] for start in range(0, max(1, size), 100)]
    hashes = b"".join(hashlib.blake2b(block, digest_size=16).digest() for block in blocks)
    expected = hashlib.blake2b(hashes, digest_size=16).hexdigest()
    (tmp_path / "other").write_bytes(b"other")
    found = list(hash_files([tmp_path / "file", tmp_path / "other", tmp_path / "file"]))
    assert (found[0], found[2]) == (expected, expected) and found[1] != expected


def test_the_manifest_is_written_after_every_other_file(folder, monkeypatch):
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "file").write_bytes(b"content")
    original, seen = manifest.write_text, []

    def write(path, text):
        seen.append((path.name, sorted(each.name for each in folder.iterdir())))
        original(path, text)

    monkeypatch.setattr(manifest, "write_text", write)
    write_manifest(folder, {})
    assert seen == [(MANIFEST_FILE, ["file"])]
