"""Questions about canvases. Every answer follows from the placements."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

from .canvases import CANVAS_SIZE, Canvas, Placement
from .concepts import Concept


MARGIN = 12  # pixels between the centers of drawings that a question calls left or right of, above or below another
NUM_NAMES = 4  # to choose from
SIDES = ("left of", "right of", "above", "below")
# Types of questions with few answers, which are balanced.
FEW_ANSWERS = {"existence", "group", "counting", "relation"}


@dataclass(frozen=True)
class Question:
    """
    A question and its answer.

    Args:
        form (`str`):
            Question with `{}` for each of `names`.
        names (`tuple[str, ...]`):
            Concepts that the question names.
        answer (`str`):
            Expected answer.
        type (`str`):
            `"existence"`, `"choice"`, `"group"`, `"counting"`, `"relation"`, `"neighbor"` or `"reading"`.
    """

    form: str
    names: tuple[str, ...]
    answer: str
    type: str

    @property
    def text(self) -> str:
        """Question with its names."""
        return self.form.format(*self.names)


def is_beyond(one: Placement, side: str, other: Placement, margin: float = MARGIN) -> bool:
    """Returns whether the center of `one` is on a `side` of the center of `other`, by `margin` pixels or more."""
    x, y = (a - b for a, b in zip(one.center, other.center, strict=True))
    return {"left of": -x, "right of": x, "above": -y, "below": y}[side] >= margin


def _unique(canvas: Canvas) -> list[Placement]:
    """Drawings whose concept is drawn once."""
    counts = Counter(placement.name for placement in canvas.drawings)
    return [placement for placement in canvas.drawings if counts[placement.name] == 1]


def _neighbors(canvas: Canvas) -> list[tuple[Placement, str, Placement]]:
    """
    Each drawing that is clearly on one side of another, with the side and the other drawing, if no third drawing is
    on that side at all. Canvases with a word have none.
    """
    if canvas.writing is not None:
        return []
    neighbors = []
    for other in _unique(canvas):
        for side in SIDES:
            beyond = [one for one in canvas.drawings if one is not other and is_beyond(one, side, other, margin=0.5)]
            if len(beyond) == 1 and is_beyond(beyond[0], side, other):
                neighbors.append((beyond[0], side, other))
    return neighbors


def place_name(placement: Placement) -> str:
    """Returns the ninth of the canvas that contains the center: `"top left"`, `"top"`, `"center"`, ..."""
    column, row = (min(2, int(3 * coordinate / CANVAS_SIZE)) for coordinate in placement.center)
    words = [("top", "", "bottom")[row], ("left", "", "right")[column]]
    return " ".join(word for word in words if word) or "center"


class Questioner:
    """Asks about canvases; `concepts` are all concepts of the data set."""

    def __init__(self, concepts: Sequence[Concept]):
        self.concepts = {concept.name: concept for concept in concepts}
        self.groups = sorted({concept.group for concept in concepts})

    def _absent(self, random: Random, canvas: Canvas, group: str | None, excluded: Iterable[str] = ()) -> str:
        """A random concept that is not on the canvas, from a group if given."""
        excluded = {*excluded, *(placement.name for placement in canvas.drawings)}
        if canvas.writing is not None:
            excluded.add(canvas.writing.placement.name)
        concepts = [concept for concept in self.concepts.values() if group in (None, concept.group)]
        return random.choice([concept.name for concept in concepts if concept.name not in excluded])

    def _existence(self, random: Random, canvas: Canvas) -> Question:
        """As in POPE: half of the absent concepts are from the group of a drawing, which is harder, half from any."""
        present = random.choice(canvas.drawings).name
        form = "does the image show the {}?"
        if random.random() < 0.5:
            return Question(form, (present,), "yes", "existence")
        group = self.concepts[present].group if random.random() < 0.5 else None
        return Question(form, (self._absent(random, canvas, group),), "no", "existence")

    def _choice(self, random: Random, canvas: Canvas) -> Question:
        """
        As in MMBench: one of four names is correct. Two are from its group and two from another: if three were from
        one group, a guess among these three would be correct more often than one among four.
        """
        answer = random.choice(canvas.drawings).name
        answer_group = self.concepts[answer].group
        other = random.choice([group for group in self.groups if group != answer_group])
        names = [answer]
        for group in (answer_group, other, other):
            names.append(self._absent(random, canvas, group, names))
        random.shuffle(names)
        form = "which does the image show: " + ", ".join(["{}"] * (NUM_NAMES - 1)) + " or {}?"
        return Question(form, tuple(names), answer, "choice")

    def _group(self, random: Random, canvas: Canvas) -> Question | None:
        if len(canvas.drawings) == 1:
            answer = self.concepts[canvas.drawings[0].name].group
            return Question("what group is the drawing from?", (), answer, "group")
        if neighbors := _neighbors(canvas):
            one, side, other = random.choice(neighbors)
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
        """As in GQA."""
        neighbors = _neighbors(canvas)
        if not neighbors:
            return None
        one, side, other = random.choice(neighbors)
        return Question(f"what is {side} the {{}}?", (other.name,), one.name, "neighbor")

    def _reading(self, random: Random, canvas: Canvas) -> Question | None:
        if canvas.writing is None:
            return None
        return Question("what word is written?", (), canvas.writing.placement.name, "reading")

    def ask(self, random: Random, canvas: Canvas) -> Iterator[Question]:
        """Yields at most one random question of each type about a canvas."""
        types = (
            self._existence,
            self._choice,
            self._group,
            self._counting,
            self._relation,
            self._neighbor,
            self._reading,
        )
        for make_question in types:
            question = make_question(random, canvas)
            if question is not None:
                yield question

    def caption(self, canvas: Canvas) -> str:
        """Returns everything on a canvas and its place from top to bottom: `"red apple top left, word sun bottom"`."""
        contents = [(placement, placement.name) for placement in canvas.drawings]
        if canvas.writing is not None:
            contents.append((canvas.writing.placement, f"word {canvas.writing.placement.name}"))
        contents.sort(key=lambda content: content[0].center[::-1])
        return ", ".join(f"{name} {place_name(placement)}" for placement, name in contents)


def balance_answers(questions: Sequence[tuple[str, Question]], random: Random) -> list[tuple[str, Question]]:
    """
    Removes random questions until all answers to each form of the types with few answers are equally frequent, so that
    knowing the answers does not help without the image. Each question comes with the name of its canvas.
    """
    indices: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index, (_, question) in enumerate(questions):
        if question.type in FEW_ANSWERS:
            indices[question.form][question.answer].append(index)
    removed: set[int] = set()
    for answers in indices.values():
        fewest = min(map(len, answers.values()))
        for same in answers.values():
            removed.update(random.sample(same, len(same) - fewest))
    return [pair for index, pair in enumerate(questions) if index not in removed]


def blind_accuracy(questions: Sequence[Question]) -> dict[str, float]:
    """
    Returns the accuracy without the image by type of question: of the most frequent answer to each form, and of any
    of the names to choose from.
    """
    answers: dict[tuple[str, str], Counter] = defaultdict(Counter)
    for question in questions:
        answers[question.type, question.form][question.answer] += 1
    num_correct: Counter = Counter()
    for (question_type, _), counts in answers.items():
        num_correct[question_type] += max(counts.values())
    totals = Counter(question.type for question in questions)
    num_correct["choice"] = totals["choice"] / NUM_NAMES
    return {question_type: num_correct[question_type] / total for question_type, total in sorted(totals.items())}
