"""Library errors become user errors that begin with the problem; errors that name their file are unchanged."""

import pytest

from hawaii.files.user_error import UserError, explain_errors


def test_a_library_error_follows_the_problem_and_is_chained():
    with pytest.raises(UserError, match=r"^The model a/b cannot be loaded: bad value$") as raised:
        with explain_errors("The model a/b cannot be loaded"):
            raise RuntimeError("bad value")
    assert isinstance(raised.value.__cause__, RuntimeError)


@pytest.mark.parametrize("error", [OSError("disk full"), UserError("max_steps is 0.")])
def test_an_error_of_the_system_or_for_the_user_is_unchanged(error):
    with pytest.raises(type(error)) as raised:
        with explain_errors("The model a/b cannot be loaded"):
            raise error
    assert raised.value is error


def test_only_the_given_types_are_converted():
    with pytest.raises(TypeError):
        with explain_errors("The model a/b cannot be loaded", ValueError):
            raise TypeError("a bug")


def test_without_a_problem_the_message_is_unchanged():
    with pytest.raises(UserError, match="^Give images, text or both.$"):
        with explain_errors():
            raise ValueError("Give images, text or both.")
