"""Every answer follows from the placements, and knowing the frequencies of answers does not help."""

import re
from collections import Counter
from random import Random

import pytest

from hawaii.example_data.emoji_vqa.canvases import Canvas, Placement, Writing, lay_out
from hawaii.example_data.emoji_vqa.concepts import Concept
from hawaii.example_data.emoji_vqa.questions import (
    FEW_ANSWERS,
    Question,
    Questioner,
    balance_answers,
    blind_accuracy,
    is_beyond,
    place_name,
)


GROUPS = {"animals": ["fox", "crab", "swan", "goose", "lion", "horse", "moose"], "food": ["egg", "salt", "ice"]}
GROUPS["food"] += ["red apple", "jar", "onion", "mate"]
GROUP_OF = {name: group for group, names in GROUPS.items() for name in names}
CONCEPTS = [Concept(name, name, group, group) for name, group in GROUP_OF.items()]
WORDS = ["fox", "egg", "ice", "jar"]
AXES = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}


@pytest.fixture(scope="module")
def canvas_questions():
    """Questions, each with its canvas."""
    questioner = Questioner(CONCEPTS)
    canvases = [lay_out(Random(number), "noto", list(GROUP_OF), WORDS) for number in range(1500)]
    return [
        (canvas, question)
        for number, canvas in enumerate(canvases)
        for question in questioner.ask(Random(f"ask {number}"), canvas)
    ]


def of_type(canvas_questions, question_type):
    found = [(canvas, question) for canvas, question in canvas_questions if question.type == question_type]
    assert len(found) > 100
    return found


def middle(canvas: Canvas, name: str) -> tuple[float, float]:
    """The center of the only drawing of a concept."""
    (one,) = [one for one in canvas.drawings if one.name == name]
    return one.left + one.width / 2, one.top + one.height / 2


def names_on(canvas: Canvas) -> list[str]:
    return [one.name for one in canvas.drawings]


def test_there_are_seven_types_and_at_most_one_question_of_each_about_a_canvas(canvas_questions):
    types = {question.type for _, question in canvas_questions}
    assert types == {"existence", "choice", "group", "counting", "relation", "neighbor", "reading"}
    counts = Counter((id(canvas), question.type) for canvas, question in canvas_questions)
    assert set(counts.values()) == {1}


def test_existence_questions_name_a_drawn_concept_if_the_answer_is_yes(canvas_questions):
    like = []
    for canvas, question in of_type(canvas_questions, "existence"):
        (name,) = question.names
        assert question.answer == ("yes" if name in names_on(canvas) else "no")
        assert question.text == f"does the image show the {name}?"
        if question.answer == "no":
            like.append(GROUP_OF[name] in {GROUP_OF[drawn] for drawn in names_on(canvas)})
            assert canvas.writing is None or canvas.writing.placement.name != name
    assert 0.5 < sum(like) / len(like) < 0.99  # half by design, and others by chance


def test_one_of_four_names_is_correct_and_two_each_are_from_one_group(canvas_questions):
    places = Counter()
    for canvas, question in of_type(canvas_questions, "choice"):
        assert [name for name in question.names if name in names_on(canvas)] == [question.answer]
        assert len(set(question.names)) == 4
        assert sorted(Counter(GROUP_OF[name] for name in question.names).values()) == [2, 2]
        places[question.names.index(question.answer)] += 1
        assert question.text.endswith("{}, {}, {} or {}?".format(*question.names))
    assert min(places.values()) > 0.2 * sum(places.values())


def test_group_questions_are_about_the_only_drawing_or_a_neighbor(canvas_questions):
    for canvas, question in of_type(canvas_questions, "group"):
        if not question.names:
            (name,) = names_on(canvas)
        else:
            side = re.fullmatch("what group is the drawing (.+) the {} from[?]", question.form)[1]
            (name,) = on_side(canvas, side, question.names[0])
        assert question.answer == GROUP_OF[name]


def test_counts_are_numbers_of_drawings(canvas_questions):
    for canvas, question in of_type(canvas_questions, "counting"):
        counted = [name for name in names_on(canvas) if name in (question.names or names_on(canvas))]
        assert question.answer == str(len(counted)) and counted


def on_side(canvas: Canvas, side: str, name: str) -> list[str]:
    """Drawings that are at least half a pixel on a side of the only drawing of a concept."""
    axis, sign = AXES[side]
    start = middle(canvas, name)[axis]
    return [one.name for one in canvas.drawings if sign * (middle_of(one)[axis] - start) >= 0.5]


def middle_of(one: Placement) -> tuple[float, float]:
    return one.left + one.width / 2, one.top + one.height / 2


def test_relations_follow_from_the_centers(canvas_questions):
    for canvas, question in of_type(canvas_questions, "relation"):
        (across, down), (other_across, other_down) = (middle(canvas, name) for name in question.names)
        is_across = "left or right" in question.form
        gap = across - other_across if is_across else down - other_down
        assert abs(gap) >= 12
        assert question.answer == (
            ("left" if gap < 0 else "right") if is_across else ("above" if gap < 0 else "below")
        )
        assert question.names[0] != question.names[1]


def test_a_neighbor_is_alone_on_its_side_and_clearly_there(canvas_questions):
    for canvas, question in of_type(canvas_questions, "neighbor"):
        side = re.fullmatch("what is (.+) the {}[?]", question.form)[1]
        assert on_side(canvas, side, question.names[0]) == [question.answer]
        axis, sign = AXES[side]
        far = [sign * (middle_of(one)[axis] - middle(canvas, question.names[0])[axis]) for one in canvas.drawings]
        assert max(far) >= 12 and canvas.writing is None


def test_the_answer_to_reading_is_the_written_word(canvas_questions):
    for canvas, question in of_type(canvas_questions, "reading"):
        assert question.answer == canvas.writing.placement.name and question.text == "what word is written?"
    assert len(of_type(canvas_questions, "reading")) == len(
        {id(canvas) for canvas, _ in canvas_questions if canvas.writing is not None}
    )


@pytest.mark.parametrize(
    ("left", "top", "side"), [(0, 20, "left of"), (40, 20, "right of"), (20, 0, "above"), (20, 40, "below")]
)
def test_only_centers_decide_which_side_a_drawing_is_on(left, top, side):
    one, other = Placement("fox", left, top, 10, 10), Placement("egg", 15, 15, 20, 20)
    assert [name for name in AXES if is_beyond(one, name, other)] == [side]
    assert not is_beyond(one, side, other, margin=21)


def test_neighbors_need_a_canvas_without_a_word_and_a_side_without_a_third_drawing():
    fox, egg, ice = (Placement(name, left, 0, 20, 20) for name, left in (("fox", 0), ("egg", 22), ("ice", 44)))
    written = Writing(Placement("jar", 0, 40, 20, 10), 14, (0, 0, 0))
    questioner = Questioner(CONCEPTS)

    def neighbors(canvas):
        answered = [question for seed in range(50) for question in questioner.ask(Random(seed), canvas)]
        return {(question.text, question.answer) for question in answered if question.type == "neighbor"}

    assert neighbors(Canvas("noto", (0, 0, 0), (fox, egg), None)) == {
        ("what is left of the egg?", "fox"),
        ("what is right of the fox?", "egg"),
    }
    assert neighbors(Canvas("noto", (0, 0, 0), (fox, egg), written)) == set()
    assert neighbors(Canvas("noto", (0, 0, 0), (fox, egg, ice), None)) == {
        ("what is left of the egg?", "fox"),
        ("what is right of the egg?", "ice"),
    }


def test_a_caption_names_everything_from_top_to_bottom_with_its_place():
    canvas = Canvas(
        "noto",
        (0, 0, 0),
        (Placement("fox", 40, 34, 24, 24), Placement("red apple", 0, 0, 24, 24)),
        Writing(Placement("ice", 20, 25, 24, 12), 14, (0, 0, 0)),
    )
    assert Questioner(CONCEPTS).caption(canvas) == "red apple top left, word ice center, fox bottom right"
    assert place_name(Placement("fox", 20, 40, 24, 24)) == "bottom"
    assert place_name(Placement("fox", 0, 20, 24, 24)) == "left"


def test_answers_are_balanced_within_each_form():
    questions = [("a", Question("how many?", (), answer, "counting")) for answer in "1112233333"]
    questions += [("a", Question("is it?", (), "yes", "existence"))]
    questions += [("a", Question("what is it?", (), "fox", "neighbor"))] * 3
    balanced = balance_answers(questions, Random(0))
    assert Counter(question.answer for _, question in balanced) == {"1": 2, "2": 2, "3": 2, "yes": 1, "fox": 3}
    order = [questions.index(pair) for pair in balanced]
    assert order == sorted(order) and balanced == balance_answers(questions, Random(0))


def test_knowing_the_answers_of_a_form_does_not_help(canvas_questions):
    balanced = balance_answers([(str(id(canvas)), question) for canvas, question in canvas_questions], Random(0))
    counts: dict[str, Counter] = {}
    for _, question in balanced:
        if question.type in FEW_ANSWERS:
            counts.setdefault(question.form, Counter())[question.answer] += 1
    assert all(len(set(answers.values())) == 1 for answers in counts.values())
    blind = blind_accuracy([question for _, question in balanced])
    assert blind["existence"] == blind["relation"] == 0.5 and blind["counting"] == 0.25 and blind["group"] == 0.5


def test_blind_accuracy_is_that_of_the_most_frequent_answer_to_each_form():
    questions = [Question("a?", (), answer, "counting") for answer in "112"]
    questions += [Question("b?", (), answer, "counting") for answer in "2"]
    assert blind_accuracy(questions) == {"counting": 0.75}
