"""Errors of the file system are one sentence, with the way out that fits the error."""

import errno
import re

import pytest

from hawaii.files.user_error import UserError
from hawaii.files.write_errors import explain_write_errors


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            OSError(errno.ENOSPC, "x"),
            r"/run could not be written \(No space left on device; .* free there\): make room",
        ),
        (OSError(errno.EDQUOT, "x"), r"/run could not be written \(Disk quota exceeded; .* free there\): make room"),
        (Exception("No space (os error 28)"), r"/run could not be written \(No space left on device; .*: make room"),
        (RuntimeError("PytorchStreamWriter failed"), r"/run could not be written \(a file could only .*: make room"),
        (
            PermissionError(errno.EACCES, "x", "/a"),
            r"/run could not be completed \(Permission denied: /a\): correct this",
        ),
        (
            FileNotFoundError(errno.ENOENT, "x", "/a"),
            r"/run could not be completed \(No such file or directory: /a\): c",
        ),
        (Exception("gone (os error 2)"), r"/run could not be completed \(No such file or directory\): correct this"),
        (OSError("cannot read it"), r"/run could not be completed \(cannot read it\): correct this"),
    ],
)
def test_the_way_out_fits_the_error(tmp_path, error, sentence):
    with (
        pytest.raises(UserError, match=f"^{re.escape(str(tmp_path))}{sentence}.* and try again.$"),
        explain_write_errors(tmp_path / "run", "try again."),
    ):
        raise error


def test_other_errors_are_unchanged(tmp_path):
    with pytest.raises(KeyError), explain_write_errors(tmp_path, "try again."):
        raise KeyError("x")
