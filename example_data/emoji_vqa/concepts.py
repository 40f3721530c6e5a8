"""The concepts of EmojiVQA: things with a short name that every vendor has drawn."""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...files.atomic import read_json
from .packages import read_members


# emojibase's names of the groups of things: no faces, people, signs or flags.
GROUPS = ("animals-nature", "food-drink", "travel-places", "activities", "objects")
SHORT_NAME = re.compile("[a-z]+( [a-z]+)?")


@dataclass(frozen=True)
class Concept:
    """One thing: its name, the code point of its drawings, and the group and subgroup that it belongs to."""

    name: str
    code_point: str
    group: str
    subgroup: str


def read_chosen(path: Path) -> list[Concept]:
    """Reads the concepts of a data set from its `concepts.json`."""
    return [Concept(**fields) for fields in read_json(path)["concepts"]]


def read_concepts(archive: Path) -> list[Concept]:
    """
    Reads the emoji that have a group from the package emojibase-data, in the order of Unicode. Groups in `GROUPS` get
    the first word of emojibase's name, such as `"animals"`. The code point of a sequence has hyphens.
    """
    emoji, meta = read_members(archive, "en/data.json", "meta/groups.json")
    concepts = []
    for entry in emoji:
        if "group" not in entry:
            continue
        group = meta["groups"][str(entry["group"])]
        concepts.append(
            Concept(
                name=entry["label"],
                # Vendors' tables omit the variation selector that requests a drawing instead of a letter.
                code_point=entry["hexcode"].lower().replace("-fe0f", ""),
                group=group.partition("-")[0] if group in GROUPS else group,
                subgroup=meta["subgroups"][str(entry["subgroup"])],
            )
        )
    return concepts


def _singular_and_plural(word: str) -> set[str]:
    """Singular and plural of a word, as far as an s makes the difference."""
    return {word, f"{word}s", word.removesuffix("s")}


def _without_shared_words(concepts: Sequence[Concept]) -> Iterator[Concept]:
    """Concepts whose names share no word with an earlier one, one-word names first: of cat and cat face, cat."""
    used = set()
    for concept in sorted(concepts, key=lambda concept: concept.name.count(" ")):
        words = concept.name.split()
        if not any(used & _singular_and_plural(word) for word in words):
            used.update(*map(_singular_and_plural, words))
            yield concept


def filter_concepts(concepts: Sequence[Concept], drawn: Sequence[Collection[str]]) -> dict[str, list[Concept]]:
    """
    Filters concepts by one rule after the other, given the code points that each vendor has drawn. Returns the
    concepts after each rule, by the rule; the last ones are the result.
    """
    groups = {group.partition("-")[0] for group in GROUPS}
    rules = {
        "is a thing": lambda concept: concept.group in groups,
        "is one code point": lambda concept: "-" not in concept.code_point,
        "is drawn by every vendor": lambda concept: all(concept.code_point in codes for codes in drawn),
        "has a name of one or two plain words": lambda concept: SHORT_NAME.fullmatch(concept.name),
    }
    filtered = {"has a name": list(concepts)}
    for rule, is_met in rules.items():
        concepts = [concept for concept in concepts if is_met(concept)]
        filtered[rule] = concepts
    filtered["shares no word with another"] = sorted(_without_shared_words(concepts), key=concepts.index)
    return filtered
