"""What is asked about a canvas. Every answer follows from what was placed where."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

from .canvases import CANVAS_SIZE, Canvas, Placement
from .concepts import Concept


MARGIN = 12  # pixels by which one center must be beyond another to be called so
NUM_NAMES = 4  # that a question with names to choose from has
SIDES = ("left of", "right of", "above", "below")
# Kinds whose answers are few: each is then the answer equally often.
FEW_ANSWERS = {"existence", "group", "counting", "relation"}


@dataclass(frozen=True)
class Question:
    """
    A question and its answer.

    Args:
        form (`str`):
            The question, with `{}` for each of `names`.
        names (`tuple[str, ...]`):
            The concepts that it names.
        answer (`str`):
            In the words that a model is to give.
        type (`str`):
            `"existence"`, `"choice"`, `"group"`, `"counting"`, `"relation"`, `"neighbor"` or `"reading"`.
    """

    form: str
    names: tuple[str, ...]
    answer: str
    type: str

    @property
    def text(self) -> str:
        """The question as it is asked."""
        return self.form.format(*self.names)


def is_beyond(one: Placement, side: str, other: Placement, margin: float = MARGIN) -> bool:
    """Whether the center of `one` is on a `side` of `other`'s, by `margin` pixels or more."""
    across, down = (a - b for a, b in zip(one.center, other.center, strict=True))
    distance = {"left of": -across, "right of": across, "above": -down, "below": down}[side]
    return distance >= margin


def _unique(canvas: Canvas) -> list[Placement]:
    """The drawings whose concept is drawn once."""
    counts = Counter(placement.name for placement in canvas.drawings)
    return [placement for placement in canvas.drawings if counts[placement.name] == 1]


def _neighbors(canvas: Canvas) -> list[tuple[Placement, str, Placement]]:
    """What is clearly on a side of another drawing, while no third is even a little. None where a word stands."""
    if canvas.writing is not None:
        return []
    found = []
    for other in _unique(canvas):
        for side in SIDES:
            beyond = [one for one in canvas.drawings if one is not other and is_beyond(one, side, other, margin=0.5)]
            if len(beyond) == 1 and is_beyond(beyond[0], side, other):
                found.append((beyond[0], side, other))
    return found


def place_name(placement: Placement) -> str:
    """Which ninth of the canvas the center is in: `"top left"`, `"top"`, `"center"`, ..."""
    across, down = (min(2, int(3 * at / CANVAS_SIZE)) for at in placement.center)
    words = [("top", "", "bottom")[down], ("left", "", "right")[across]]
    return " ".join(word for word in words if word) or "center"


class Questioner:
    """
    Asks about canvases.

    Args:
        concepts (`Sequence[Concept]`):
            All that are drawn anywhere.
    """

    def __init__(self, concepts: Sequence[Concept]):
        self.concepts = {concept.name: concept for concept in concepts}
        self.groups = sorted({concept.group for concept in concepts})

    def _absent(self, random: Random, canvas: Canvas, group: str | None = None, besides: Iterable[str] = ()) -> str:
        """A concept that is not on the canvas; of a group, if given."""
        there = {placement.name for placement in canvas.drawings}.union(besides)
        if canvas.writing is not None:
            there.add(canvas.writing.placement.name)
        return random.choice(
            [name for name, concept in self.concepts.items() if name not in there and group in (None, concept.group)]
        )

    def _existence(self, random: Random, canvas: Canvas) -> Question:
        """As POPE asks: of what is absent, half is anything and half of the group of something present."""
        present = random.choice(canvas.drawings).name
        form = "does the image show the {}?"
        if random.random() < 0.5:
            return Question(form, (present,), "yes", "existence")
        group = self.concepts[present].group if random.random() < 0.5 else None  # which is harder to tell
        return Question(form, (self._absent(random, canvas, group),), "no", "existence")

    def _choice(self, random: Random, canvas: Canvas) -> Question:
        """
        As MMBench asks: one of four names is right. Two are of its group and two of another: if three were of one
        group, a guess among these three would be right more often than one among four.
        """
        answer = random.choice(canvas.drawings).name
        own = self.concepts[answer].group
        other = random.choice([group for group in self.groups if group != own])
        names = [answer]
        for group in (own, other, other):
            names.append(self._absent(random, canvas, group, names))
        random.shuffle(names)
        form = "which does the image show: " + ", ".join(["{}"] * (NUM_NAMES - 1)) + " or {}?"
        return Question(form, tuple(names), answer, "choice")

    def _group(self, random: Random, canvas: Canvas) -> Question | None:
        if len(canvas.drawings) == 1:
            answer = self.concepts[canvas.drawings[0].name].group
            return Question("what group is the drawing from?", (), answer, "group")
        if found := _neighbors(canvas):
            one, side, other = random.choice(found)
            answer = self.concepts[one.name].group
            return Question(f"what group is the drawing {side} the {{}} from?", (other.name,), answer, "group")
        return None

    def _counting(self, random: Random, canvas: Canvas) -> Question:
        if random.random() < 0.5:
            return Question("how many drawings are there?", (), str(len(canvas.drawings)), "counting")
        (name, number), *_ = Counter(placement.name for placement in canvas.drawings).most_common(1)
        return Question("how many drawings show the {}?", (name,), str(number), "counting")

    def _relation(self, random: Random, canvas: Canvas) -> Question | None:
        unique = _unique(canvas)
        if len(unique) < 2:
            return None
        one, other = random.sample(unique, 2)
        sides = [side for side in SIDES if is_beyond(one, side, other)]
        if not sides:
            return None
        side = random.choice(sides)
        pair = "left or right of" if side in SIDES[:2] else "above or below"
        return Question(f"is the {{}} {pair} the {{}}?", (one.name, other.name), side.split()[0], "relation")

    def _neighbor(self, random: Random, canvas: Canvas) -> Question | None:
        """As GQA asks."""
        found = _neighbors(canvas)
        if not found:
            return None
        one, side, other = random.choice(found)
        return Question(f"what is {side} the {{}}?", (other.name,), one.name, "neighbor")

    def _reading(self, random: Random, canvas: Canvas) -> Question | None:
        if canvas.writing is None:
            return None
        return Question("what word is written?", (), canvas.writing.placement.name, "reading")

    def ask(self, random: Random, canvas: Canvas) -> Iterator[Question]:
        """At most one question of each type about a canvas; `random` decides which."""
        kinds = (
            self._existence,
            self._choice,
            self._group,
            self._counting,
            self._relation,
            self._neighbor,
            self._reading,
        )
        for kind in kinds:
            question = kind(random, canvas)
            if question is not None:
                yield question

    def caption(self, canvas: Canvas) -> str:
        """Everything on a canvas and where, from the top down: `"red apple top left, word sun bottom"`."""
        things = [(placement, placement.name) for placement in canvas.drawings]
        if canvas.writing is not None:
            things.append((canvas.writing.placement, f"word {canvas.writing.placement.name}"))
        things.sort(key=lambda thing: thing[0].center[::-1])
        return ", ".join(f"{name} {place_name(placement)}" for placement, name in things)


def even_out(asked: Sequence[tuple[str, Question]], random: Random) -> list[tuple[str, Question]]:
    """
    Leaves out questions until, for each form of the kinds with few answers, each answer is right equally often: who
    does not look at the image gains nothing from knowing the answers.

    Args:
        asked (`Sequence[tuple[str, Question]]`):
            Questions, each with the name of its canvas.
        random (`Random`):
            Decides which are left out.

    Returns:
        `list[tuple[str, Question]]`: the others, in their order.
    """
    indices: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index, (_, question) in enumerate(asked):
        if question.type in FEW_ANSWERS:
            indices[question.form][question.answer].append(index)
    left_out = set()
    for answers in indices.values():
        fewest = min(map(len, answers.values()))
        for same in answers.values():
            left_out.update(random.sample(same, len(same) - fewest))
    return [pair for index, pair in enumerate(asked) if index not in left_out]


def guess_blindly(questions: Sequence[Question]) -> dict[str, float]:
    """
    How often who sees no image is right, by type of question: with the most frequent answer to each form, and of a
    choice with any of the names.
    """
    answers: dict[tuple[str, str], Counter] = defaultdict(Counter)
    for question in questions:
        answers[question.type, question.form][question.answer] += 1
    num_right: Counter = Counter()
    for (question_type, _), counts in answers.items():
        num_right[question_type] += max(counts.values())
    num_asked = Counter(question.type for question in questions)
    num_right["choice"] = num_asked["choice"] / NUM_NAMES
    return {question_type: num_right[question_type] / number for question_type, number in sorted(num_asked.items())}
