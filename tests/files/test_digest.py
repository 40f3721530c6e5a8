"""Digests are equal if and only if contents are."""

import numpy as np

from hawaii.files.digest import CHUNK_SIZE, digest


def test_equal_contents_have_equal_digests():
    assert digest(b"rows") == digest(b"rows") != digest(b"row")
    labels = np.arange(6)
    assert digest(labels) == digest(labels.copy()) != digest(labels + 1)


def test_the_digest_of_a_file_is_that_of_its_bytes(tmp_path):
    content = b"x" * CHUNK_SIZE + b"end"
    (tmp_path / "file").write_bytes(content)
    assert digest(tmp_path / "file") == digest(content) == digest(b"x", content[1:])
