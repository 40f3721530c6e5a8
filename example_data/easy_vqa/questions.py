"""The questions of easy-VQA: their types, and the description of an image that follows from its questions."""

import re
from collections.abc import Iterable
from dataclasses import dataclass


SHAPES = ("circle", "rectangle", "triangle")
COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")


@dataclass(frozen=True)
class Question:
    """One question about one image."""

    text: str
    answer: str
    image_id: int

    @property
    def words(self) -> set[str]:
        """Words of the question in lower case."""
        return set(re.findall(r"\w+", self.text.lower()))

    @property
    def type(self) -> str:
        """Type of the question: `"shape"`, `"color"`, `"yes/no shape"` or `"yes/no color"`."""
        if self.answer not in ("yes", "no"):
            return "shape" if self.answer in SHAPES else "color"
        return "yes/no shape" if self.words & set(SHAPES) else "yes/no color"

    @property
    def is_true(self) -> bool:
        """Whether the image shows the shape or color that is named: true for "is there no circle?" with "no"."""
        if self.answer not in ("yes", "no"):
            return True
        return (self.answer == "yes") != bool(self.words & {"no", "not"})


@dataclass(frozen=True)
class Description:
    """Color and shape of the one shape in an image; `None` if the questions do not determine it."""

    color: str | None
    shape: str | None

    @property
    def caption(self) -> str | None:
        """Caption such as "blue rectangle". `None` unless both are known: half a caption would teach to stop early."""
        if self.color is None or self.shape is None:
            return None
        return f"{self.color} {self.shape}"


def _only(words: set[str]) -> str | None:
    return next(iter(words)) if len(words) == 1 else None


def describe(questions: Iterable[Question]) -> Description:
    """
    Infers the shape and its color from the questions about one image. A word that is named as present excludes all
    others, a word that is named as absent is excluded, and a single remaining word is the answer.
    """
    shapes, colors = set(SHAPES), set(COLORS)
    for question in questions:
        named = question.words | {question.answer}
        for all_words, possible in ((SHAPES, shapes), (COLORS, colors)):
            if not question.is_true:
                possible -= named
            elif named & set(all_words):
                possible &= named
    return Description(color=_only(colors), shape=_only(shapes))
