"""Drawings are read from Iconify's packages, cropped to their painted pixels, and compared by their looks."""

import sys

import numpy as np
import pytest

from hawaii.example_data.emoji_vqa.concepts import Concept
from hawaii.example_data.emoji_vqa.drawings import (
    Drawing,
    choose_concepts,
    crop,
    disagreement,
    import_resvg,
    rasterize,
    read_code_points,
    read_drawings,
)
from hawaii.example_data.emoji_vqa.packages import Package
from hawaii.files.user_error import UserError
from hawaii.tests.tiny.emoji import NAMES, body, make_archive, vendor_members


def square(color: str, left: float = 0, top: float = 0, side: float = 10) -> Drawing:
    """A square in a view box of 10 by 10."""
    return Drawing(f'<rect x="{left}" y="{top}" width="{side}" height="{side}" fill="{color}"/>', 0, 0, 10, 10)


def test_an_icon_without_a_size_has_the_size_of_the_table(tmp_path):
    members = vendor_members("noto")
    members["icons.json"]["icons"][NAMES[1]].update(left=-2, height=40)
    make_archive(Package("@iconify-json/noto", "1.0.0", ""), members, tmp_path)
    archive = tmp_path / "@iconify-json" / "noto" / "-" / "noto-1.0.0.tgz"
    assert read_code_points(archive)["1f001"] == NAMES[1]
    concepts = [Concept(name, f"1f{number:03x}", "objects", "tool") for number, name in enumerate(NAMES[:2])]
    assert read_drawings(archive, concepts) == [
        Drawing(body("noto", 0), 0, 0, 32, 32),
        Drawing(body("noto", 1), -2, 0, 32, 40),
    ]


def test_pixels_that_are_not_painted_are_transparent():
    pixels = np.asarray(rasterize(square("#102030", left=5), 20))
    assert pixels.shape == (20, 20, 4)
    assert (pixels[:, :10, 3] == 0).all()
    assert (pixels[:, 10:] == [0x10, 0x20, 0x30, 255]).all()


@pytest.mark.parametrize(
    "drawing",
    [
        square("red", left=4, top=1, side=4),
        Drawing('<rect x="2" y="7" width="4" height="4" fill="red"/>', 0, 0, 10, 20),
        Drawing('<rect x="-8" y="0" width="4" height="4" fill="red"/>', -10, -10, 20, 20),
    ],
)
def test_a_drawing_is_cropped_to_the_square_around_its_painted_pixels(drawing):
    pixels = np.asarray(rasterize(crop(drawing), 28)).astype(int)
    assert (pixels[2:-2, 2:-2] == [255, 0, 0, 255]).all()


def test_a_wide_drawing_keeps_its_proportions_in_the_middle():
    drawing = Drawing('<rect x="2" y="2" width="6" height="3" fill="red"/>', 0, 0, 10, 10)
    opacity = np.asarray(rasterize(crop(drawing), 24))[..., 3]
    assert (opacity[8:16, 2:-2] == 255).all()
    assert (opacity[:5] == 0).all() and (opacity[-5:] == 0).all()


def test_an_empty_drawing_is_not_cropped():
    assert crop(Drawing("<g/>", 0, 0, 10, 10)) == Drawing("<g/>", 0, 0, 10, 10)


def test_disagreement_counts_the_drawings_of_others_that_are_nearer():
    one = [square("red"), square("lime"), square("blue")]
    assert disagreement([one, one]).tolist() == [0, 0, 0]
    # Red and blue are swapped: the same concept is as far away as lime, and one other drawing is nearer.
    assert disagreement([one, one[::-1]]).tolist() == [1, 0, 1]


def test_the_most_similar_concepts_of_each_group_are_chosen_in_their_order():
    concepts = [Concept(name, name, group, "") for name, group in zip("abcde", ["x", "y", "x", "y", "x"])]
    one = [square(color) for color in ("red", "lime", "blue", "yellow", "white")]
    other = [square(color) for color in ("blue", "lime", "red", "yellow", "white")]
    assert [concept.name for concept in choose_concepts(concepts, [one, other], 1)] == ["b", "e"]
    assert [concept.name for concept in choose_concepts(concepts, [one, other], 2)] == ["a", "b", "d", "e"]


def test_the_error_without_the_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(UserError, match="resvg-py .* Install it with `pip install resvg-py==0.5.0`"):
        import_resvg()
