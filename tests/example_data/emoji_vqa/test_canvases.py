"""Drawings and words lie within the canvas, do not overlap, and are painted at their placements."""

from collections import Counter
from itertools import combinations
from random import Random

import numpy as np
import pytest

from hawaii.example_data.emoji_vqa.canvases import (
    CANVAS_SIZE,
    DRAWING_SIZES,
    Canvas,
    Painter,
    Placement,
    Writing,
    lay_out,
)
from hawaii.example_data.emoji_vqa.drawings import Drawing


NAMES = ["fox", "crab", "bell", "axe", "red apple"]
WORDS = NAMES[:4]
# Left half red, right half blue.
HALVES = Drawing('<path fill="red" d="M0 0h5v10h-5z"/><path fill="blue" d="M5 0h5v10h-5z"/>', 0, 0, 10, 10)


@pytest.fixture(scope="module")
def canvases():
    return [lay_out(Random(f"test {number}"), "noto", NAMES, WORDS) for number in range(600)]


def placements_of(canvas: Canvas) -> list[Placement]:
    return [*canvas.drawings, *([canvas.writing.placement] if canvas.writing else [])]


def pixels_of(placement: Placement) -> set[tuple[int, int]]:
    return {
        (x, y)
        for x in range(placement.left, placement.left + placement.width)
        for y in range(placement.top, placement.top + placement.height)
    }


def test_the_same_random_state_gives_the_same_canvas(canvases):
    assert lay_out(Random("test 7"), "noto", NAMES, WORDS) == canvases[7]
    assert canvases[7] != canvases[8]


def test_nothing_overlaps_or_leaves_the_canvas(canvases):
    for canvas in canvases[:200]:
        for one, other in combinations(placements_of(canvas), 2):
            assert not pixels_of(one) & pixels_of(other)
        for one in placements_of(canvas):
            assert 0 <= one.left <= CANVAS_SIZE - one.width and 0 <= one.top <= CANVAS_SIZE - one.height


def test_one_to_four_drawings_are_equally_frequent_and_any_number_can_show_one_concept(canvases):
    numbers = Counter(len(canvas.drawings) for canvas in canvases)
    assert sorted(numbers) == [1, 2, 3, 4] and min(numbers.values()) > 0.8 * 600 / 4
    copies = Counter(max(Counter(one.name for one in canvas.drawings).values()) for canvas in canvases)
    assert sorted(copies) == [1, 2, 3, 4]
    assert {one.width for canvas in canvases for one in canvas.drawings} == set(DRAWING_SIZES)


def test_some_canvases_have_a_word_that_is_not_drawn_on_them(canvases):
    written = [canvas for canvas in canvases if canvas.writing is not None]
    assert 0.2 < len(written) / len(canvases) < 0.4
    assert {canvas.writing.placement.name for canvas in written} == set(WORDS)
    assert all(canvas.writing.placement.name not in {one.name for one in canvas.drawings} for canvas in written)


@pytest.mark.parametrize("is_mirrored", [False, True])
def test_a_drawing_is_painted_only_at_its_placement(is_mirrored):
    painter = Painter({"noto": {"fox": HALVES}})
    canvas = Canvas("noto", (1, 2, 3), (Placement("fox", 10, 30, 24, 24, is_mirrored),), None)
    pixels = np.asarray(painter.paint(canvas)).copy()
    assert pixels.shape == (CANVAS_SIZE, CANVAS_SIZE, 3)
    red, blue = (slice(22, 34), slice(10, 22)) if is_mirrored else (slice(10, 22), slice(22, 34))
    assert (pixels[30:54, red] == [255, 0, 0]).all() and (pixels[30:54, blue] == [0, 0, 255]).all()
    pixels[30:54, 10:34] = [1, 2, 3]
    assert (pixels == [1, 2, 3]).all()


def test_a_word_is_painted_only_at_its_placement(canvases):
    canvas = next(canvas for canvas in canvases if canvas.writing is not None)
    place = canvas.writing.placement
    painter = Painter({"noto": {name: Drawing("<g/>", 0, 0, 10, 10) for name in NAMES}})
    pixels = np.asarray(painter.paint(canvas)).copy()
    inside = pixels[place.top : place.top + place.height, place.left : place.left + place.width]
    assert (inside == canvas.writing.color).all(axis=2).any()
    inside[:] = canvas.ground
    assert (pixels == canvas.ground).all()


def test_letters_are_found_at_their_coordinates():
    writing = Writing(Placement("dodo", 10, 5, 40, 16), 16, (0, 0, 0))
    assert [writing.letter_at(x) for x in (0, 11, 24, 33, 42, 60)] == ["d", "d", "o", "d", "o", "o"]


def test_words_and_letter_sizes_look_different():
    painter = Painter({"noto": {}})
    looks = {
        painter.paint(
            Canvas("noto", (255, 255, 255), (), Writing(Placement(word, 2, 2, 60, 20), size, (0, 0, 0)))
        ).tobytes()
        for word in WORDS
        for size in (13, 16)
    }
    assert len(looks) == len(WORDS) * 2


def test_a_drawing_is_rasterized_once_per_size(monkeypatch):
    sizes = []
    painter = Painter({"noto": {"fox": HALVES}})
    real = Painter.paint.__globals__["rasterize"]
    monkeypatch.setitem(
        Painter.paint.__globals__, "rasterize", lambda drawing, size: sizes.append(size) or real(drawing, size)
    )
    for left in (0, 5):
        painter.paint(
            Canvas("noto", (0, 0, 0), tuple(Placement("fox", left, left, size, size) for size in (24, 30)), None)
        )
    assert sizes == [24, 30]
