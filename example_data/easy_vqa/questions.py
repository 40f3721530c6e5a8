"""The questions of easy-VQA: what each asks for, and what all of one image tell about the shape in it."""

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
        """The words it asks with."""
        return set(re.findall(r"\w+", self.text.lower()))

    @property
    def type(self) -> str:
        """What it asks for: `"shape"`, `"color"`, `"yes/no shape"` or `"yes/no color"`."""
        if self.answer not in ("yes", "no"):
            return "shape" if self.answer in SHAPES else "color"
        return "yes/no shape" if self.words & set(SHAPES) else "yes/no color"

    @property
    def is_true(self) -> bool:
        """Whether the image shows what the question and its answer name: "is there no circle?" "no" says it does."""
        if self.answer not in ("yes", "no"):
            return True
        return (self.answer == "yes") != bool(self.words & {"no", "not"})


@dataclass(frozen=True)
class Description:
    """What is known of the one shape in an image; `None` where its questions do not tell."""

    color: str | None
    shape: str | None

    @property
    def caption(self) -> str | None:
        """ "blue rectangle", or `None` unless both words are known: half a caption would teach to stop halfway."""
        if self.color is None or self.shape is None:
            return None
        return f"{self.color} {self.shape}"


def _only(words: set[str]) -> str | None:
    return next(iter(words)) if len(words) == 1 else None


def describe(questions: Iterable[Question]) -> Description:
    """
    Finds the shape and its colour from the questions of one image: what is named as there leaves that word alone, what
    is named as absent leaves the others, and one word that is left is known.

    Args:
        questions (`Iterable[Question]`):
            Of one image.

    Returns:
        `Description`
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
