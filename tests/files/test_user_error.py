"""Library errors become user errors with the problem in front, and errors that name their file stay as they are."""

import pytest

from hawaii.files.user_error import UserError, explain_errors


def test_a_library_error_follows_the_problem_and_is_chained():
    with pytest.raises(UserError, match=r"^The model a/b cannot be loaded: bad value$") as raised:
        with explain_errors("The model a/b cannot be loaded"):
            raise RuntimeError("bad value")
    assert isinstance(raised.value.__cause__, RuntimeError)


@pytest.mark.parametrize("error", [OSError("disk full"), UserError("max_steps is 0.")])
def test_an_error_that_is_a_sentence_already_is_unchanged(error):
    with pytest.raises(type(error)) as raised:
        with explain_errors("The model a/b cannot be loaded"):
            raise error
    assert raised.value is error


def test_only_the_named_types_are_explained():
    with pytest.raises(TypeError):
        with explain_errors("The model a/b cannot be loaded", ValueError):
            raise TypeError("a bug")


def test_without_a_problem_the_message_is_the_sentence():
    with pytest.raises(UserError, match="^Give images, text or both.$"):
        with explain_errors():
            raise ValueError("Give images, text or both.")
