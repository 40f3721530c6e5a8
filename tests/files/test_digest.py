"""Digests are equal if and only if contents are."""

import hashlib
import shutil

import numpy as np

from hawaii.files.digest import CHUNK_SIZE, digest, digest_files, hash_file


def test_equal_contents_have_equal_digests():
    assert digest(b"rows") == digest(b"rows") != digest(b"row")
    labels = np.arange(6)
    assert digest(labels) == digest(labels.copy()) != digest(labels + 1)


def test_the_digest_of_a_file_is_that_of_its_bytes(tmp_path):
    content = b"x" * CHUNK_SIZE + b"end"
    (tmp_path / "file").write_bytes(content)
    assert digest(tmp_path / "file") == digest(content) == digest(b"x", content[1:])


def test_a_file_in_the_cache_of_the_hub_is_not_read_and_equal_to_a_copy(tmp_path):
    content = b"weights"
    blob = tmp_path / "blobs" / hashlib.sha256(content).hexdigest()
    blob.parent.mkdir()
    blob.write_bytes(content)
    link = tmp_path / "model.safetensors"
    link.symlink_to(blob)
    copy = shutil.copy(link, tmp_path / "copy.safetensors")
    assert hash_file(link) == hash_file(copy) == blob.name
    blob.write_bytes(b"not read")
    assert hash_file(link) == blob.name


def test_the_digest_of_files_depends_on_their_contents_and_order(tmp_path):
    first, second = (tmp_path / name for name in "ab")
    first.write_bytes(b"1")
    second.write_bytes(b"2")
    before = digest_files([first, second])
    assert before == digest_files([first, second]) != digest_files([second, first])
    second.write_bytes(b"33")
    assert digest_files([first, second]) != before
