"""What EmojiVQA asks about: things with a short name which every vendor has drawn."""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .packages import read_members


# Things, by the names that emojibase gives their groups: no faces, people, signs or flags.
GROUPS = ("animals-nature", "food-drink", "travel-places", "activities", "objects")
SHORT_NAME = re.compile("[a-z]+( [a-z]+)?")


@dataclass(frozen=True)
class Concept:
    """One thing: its name, the code point of its drawings, and what kind of thing it is."""

    name: str
    code_point: str
    group: str
    subgroup: str


def read_concepts(archive: Path) -> list[Concept]:
    """
    Reads the emoji of the package emojibase-data, in the order of Unicode.

    Args:
        archive (`Path`):
            The package.

    Returns:
        `list[Concept]`: those that have a group. A group is named by the first word of emojibase's name, such as
        `"animals"`, where it is one of `GROUPS`. The code point of what is a sequence of several has hyphens.
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
                # Vendors' tables leave out the mark that asks for a drawing instead of a letter.
                code_point=entry["hexcode"].lower().replace("-fe0f", ""),
                group=group.partition("-")[0] if group in GROUPS else group,
                subgroup=meta["subgroups"][str(entry["subgroup"])],
            )
        )
    return concepts


def _forms(word: str) -> set[str]:
    """A word in singular and plural, so far as an s makes it."""
    return {word, f"{word}s", word.removesuffix("s")}


def _without_shared_words(concepts: Sequence[Concept]) -> Iterator[Concept]:
    """Those whose names have no word in common with one before, shorter names first: of cat and cat face, cat."""
    taken = set()
    for concept in sorted(concepts, key=lambda concept: concept.name.count(" ")):
        words = concept.name.split()
        if not any(taken & _forms(word) for word in words):
            taken.update(*map(_forms, words))
            yield concept


def candidates(concepts: Sequence[Concept], drawn: Sequence[Collection[str]]) -> dict[str, list[Concept]]:
    """
    Filters concepts one rule after the other.

    Args:
        concepts (`Sequence[Concept]`):
            In the order of Unicode.
        drawn (`Sequence[Collection[str]]`):
            The code points that each vendor has drawn.

    Returns:
        `dict[str, list[Concept]]`: what each rule leaves, by what it asks for. The last is the answer.
    """
    groups = {group.partition("-")[0] for group in GROUPS}
    rules = {
        "is a thing": lambda concept: concept.group in groups,
        "is one code point": lambda concept: "-" not in concept.code_point,
        "is drawn by every vendor": lambda concept: all(concept.code_point in codes for codes in drawn),
        "has a name of one or two plain words": lambda concept: SHORT_NAME.fullmatch(concept.name),
    }
    left = {"has a name": list(concepts)}
    for rule, holds in rules.items():
        concepts = [concept for concept in concepts if holds(concept)]
        left[rule] = concepts
    order = {concept.code_point: index for index, concept in enumerate(concepts)}
    left["shares no word with another"] = sorted(
        _without_shared_words(concepts), key=lambda concept: order[concept.code_point]
    )
    return left
