"""What is wrong with a teacher, in one sentence."""

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager


class TeacherError(ValueError):
    """What is wrong with a teacher, in words for who wrote the recipe."""


def check_layer(name: str, layer: int, num_layers: int) -> None:
    """Raises a [`TeacherError`] where `layer`, counted from either end, is none of `num_layers`."""
    if not -num_layers <= layer < num_layers:
        raise TeacherError(
            f"Teacher {name} has no layer {layer}: its layers go from {-num_layers} to {num_layers - 1}."
        )


@contextmanager
def in_one_sentence(problem: str) -> Iterator[None]:
    """
    Says what a library raises of somebody else's checkpoint after `problem`, for libraries raise errors of every kind
    there. What it raised itself stays behind the sentence, for `HAWAII_DEBUG=1`.

    Raises:
        OSError: as it was raised; it is a sentence already.
        TeacherError: anything else was raised.
    """
    try:
        yield
    except (OSError, TeacherError):
        raise
    except Exception as error:
        said = textwrap.shorten(str(error) or type(error).__name__, 400)
        raise TeacherError(f"{problem}: {said}") from error
