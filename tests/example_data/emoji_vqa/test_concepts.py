"""Concepts are things that every vendor has drawn, with short names that share no word."""

import pytest

from hawaii.example_data.emoji_vqa.concepts import Concept, filter_concepts, read_concepts
from hawaii.example_data.emoji_vqa.packages import Package
from hawaii.tests.tiny.emoji import NAMES, make_archive, names_members


def concept(name: str, code_point: str = "1f408", group: str = "animals") -> Concept:
    return Concept(name, code_point, group, "animal-mammal")


def filtered_names(concepts, drawn=({"1f408", "1f409", "1f40a", "1f408-1f409"},)) -> list[str]:
    *_, last = filter_concepts(concepts, drawn).values()
    return [concept.name for concept in last]


def test_groups_are_named_by_their_first_word(tmp_path):
    members = names_members()
    members["en/data.json"] += [
        {"label": "letter A", "hexcode": "1F1E6"},
        {"label": "airplane", "hexcode": "2708-FE0F", "group": 2, "subgroup": 3},
        {"label": "thumbs up", "hexcode": "1F44D", "group": 9, "subgroup": 3},
    ]
    members["meta/groups.json"]["groups"]["9"] = "people-body"
    package = Package("emojibase-data", "1.0.0", "")
    make_archive(package, members, tmp_path)
    concepts = read_concepts(tmp_path / "emojibase-data" / "-" / "emojibase-data-1.0.0.tgz")
    assert [found.name for found in concepts] == [*NAMES, "airplane", "thumbs up"]
    assert concepts[0] == Concept(NAMES[0], "1f000", "animals", "subgroup 0")
    assert concepts[-2] == Concept("airplane", "2708", "travel", "subgroup 3")
    assert concepts[-1].group == "people-body"


@pytest.mark.parametrize(
    "wrong",
    [
        concept("cat", group="people-body"),
        concept("cat", group="symbols"),
        concept("black cat", "1f408-1f409"),
        concept("cat", "1fabc"),
        concept("Cat"),
        concept("cat-like"),
        concept("piñata"),
        concept("cat with wings"),
    ],
    ids=lambda wrong: f"{wrong.name}, {wrong.code_point}, {wrong.group}",
)
def test_concepts_that_are_not_things_or_not_drawn_or_lack_a_short_plain_name_are_removed(wrong):
    assert filtered_names([concept("dog", "1f409"), wrong]) == ["dog"]


def test_concepts_that_one_vendor_lacks_are_removed():
    assert filtered_names([concept("cat"), concept("dog", "1f409")], [{"1f408", "1f409"}, {"1f409"}]) == ["dog"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["cat face", "cat"], ["cat"]),
        (["cat", "cat"], ["cat"]),
        (["book", "books"], ["book"]),
        (["green books", "book"], ["book"]),
        (["soccer ball", "crystal ball"], ["soccer ball"]),
        (["water", "watermelon"], ["water", "watermelon"]),
    ],
)
def test_the_first_of_the_shortest_names_with_a_shared_word_remains(names, expected):
    codes = ["1f408", "1f409"]
    assert filtered_names([concept(name, code) for name, code in zip(names, codes)]) == expected


def test_the_concepts_after_each_rule_are_returned():
    counts = filter_concepts(
        [concept("cat"), concept("flag", group="flags"), concept("cats", "1f409")], [{"1f408", "1f409"}]
    )
    assert [len(concepts) for concepts in counts.values()] == [3, 2, 2, 2, 2, 1]
