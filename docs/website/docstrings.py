"""
Docstrings in the form of Hugging Face's libraries, as tables of parameters with links.

An item of `Args:` is a line with one or more names, each with its type, shape and default, and an indented
description: ``name (`torch.FloatTensor` of shape `(batch_size, width)`, *optional*, defaults to `None`):``. A name in
brackets and backticks, as in [`Docstrings`], is a link if the name is in the API reference.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from griffe import (
    Class,
    Docstring,
    DocstringAttribute,
    DocstringParameter,
    DocstringReturn,
    DocstringSection,
    DocstringSectionAttributes,
    DocstringSectionParameters,
    DocstringSectionReturns,
    Extension,
    Function,
    Object,
    parse_docstring_annotation,
)


API_PAGES = Path(__file__).parents[1] / "api"
HEADING = re.compile(r"^(\w+):$", flags=re.MULTILINE)
ITEM = re.compile(r"^    (\S.*(?:\n    \S.*)*?):\n((?:^(?: {8}.*)?(?:\n|\Z))*)", flags=re.MULTILINE)
NAMES = re.compile(r"((?:[*\w.]+(?:, )?)+)(?: \(((?:`[^`]*`|[^`()])*)\))?(?:, )?")
REFERENCE = re.compile(r"\[`~?([\w.]+)`\]")


def read_documented() -> dict[str, str]:
    """The full names of the objects of the API pages, by their last parts."""
    pages = (page.read_text(encoding="utf-8") for page in sorted(API_PAGES.glob("*.md")))
    names = [name for page in pages for name in re.findall(r"^::: ([\w.]+)$", page, flags=re.MULTILINE)]
    return {name.rpartition(".")[2]: name for name in names}


class Docstrings(Extension):
    """Parses the docstrings of a package when it has been loaded."""

    def __init__(self):
        super().__init__()
        self.documented = read_documented()

    def on_package(self, *, pkg, **kwargs) -> None:
        objects = {obj.path: obj for obj in objects_of(pkg)}
        modules = [obj for name, obj in objects.items() if name in self.documented.values() and obj.is_module]
        members = {member.name: member.path for module in modules for member in objects_of(module)}
        self.documented = members | self.documented
        for obj in objects.values():
            if obj.docstring is not None:
                text = REFERENCE.sub(self.link, obj.docstring.value)
                obj.docstring.value = text
                obj.docstring.parsed = list(parse(text, obj))

    def link(self, reference: re.Match) -> str:
        """A link to a class, a function or a method; only its name if the API reference does not contain it."""
        name, dot, member = reference[1].partition(".")
        target = self.documented.get(name)
        if target is None or (member and member.startswith("_")):
            return f"`{name}{dot}{member}`"
        return f"[`{name}{dot}{member}`][{target}{dot}{member}]"


def objects_of(parent: Object) -> Iterator[Object]:
    """A package and everything that is defined in it."""
    yield parent
    for member in parent.members.values():
        if not member.is_alias:
            yield from objects_of(member)


def parse(text: str, obj: Object) -> Iterator[DocstringSection]:
    """The sections of a docstring."""
    starts = [match.start() for match in HEADING.finditer(text)]
    for start, end in zip([0, *starts], [*starts, len(text)]):
        section = text[start:end].strip("\n")
        heading, _, content = section.partition("\n")
        if heading == "Args:":
            yield DocstringSectionParameters(list(parse_items(content, obj, DocstringParameter)))
        elif heading == "Attributes:":
            yield DocstringSectionAttributes(list(parse_items(content, obj, DocstringAttribute)))
        elif heading == "Returns:":
            yield DocstringSectionReturns([parse_returned(content, obj)])
        elif section:
            # The line break keeps the indentation, which is otherwise removed from all lines but the first.
            yield from Docstring(f"\n{section}", parent=obj).parse("google")


def parse_items(content: str, obj: Object, kind: type) -> Iterator:
    """
    One parameter or attribute for each name of each item.

    Raises:
        ValueError: a line is not part of an item.
    """
    if unread := ITEM.sub("", content).strip():
        raise ValueError(f"The docstring of {obj.path} has lines that are no items: {unread!r}.")
    for head, description in ITEM.findall(content):
        lines = "\n".join(line[8:] for line in description.splitlines()).strip()
        for names, facts in NAMES.findall(" ".join(head.split())):
            for name in names.rstrip(", ").split(", "):
                yield make_item(name, facts, lines, obj, kind)


def make_item(name: str, facts: str, description: str, obj: Object, kind: type):
    """A row of the table; without a type or a default in the docstring, it has those of the signature."""
    declared = obj.parameters[name] if isinstance(obj, Class | Function) and name in obj.parameters else None
    before, _, default = facts.partition("defaults to ")
    written, _, rest = before.partition(" of shape ")
    types = re.findall(r"`([^`]+)`", written)
    annotation = declared.annotation if declared is not None else None
    if types:
        annotation = parse_docstring_annotation(" | ".join(types), Docstring("", parent=obj))
    value = default.strip("`") or (declared.default if declared is not None else None)
    if value is None and "*optional*" in facts:
        value = "None"
    shape = re.match(r"`([^`]+)`", rest)
    notes = [f"Shape `{shape[1]}`."] if shape else []
    notes += [f"{note.capitalize()}." for note in re.findall(r"returned with `[^`]+`", facts)]
    options = {} if kind is DocstringAttribute else {"value": value}
    return kind(name, annotation=annotation, description=" ".join([*notes, description]), **options)


def parse_returned(content: str, obj: Object) -> DocstringReturn:
    """What is returned; its type is that of the docstring, if it begins with one, or that of the signature."""
    text = "\n".join(line[4:] for line in content.splitlines())
    written = re.match(r"`([^`]+)`(?: of shape (`[^`]+`))?[:.;]\s*", text)
    if written is None:
        return DocstringReturn("", annotation=obj.returns if isinstance(obj, Function) else None, description=text)
    shape = f"Shape {written[2]}. " if written[2] else ""
    rest = text[written.end() :]
    annotation = parse_docstring_annotation(written[1], Docstring("", parent=obj))
    return DocstringReturn("", annotation=annotation, description=shape + rest[:1].upper() + rest[1:])
