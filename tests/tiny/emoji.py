"""Stand-ins for the npm packages of EmojiVQA: a few drawings in the real layout."""

import base64
import hashlib
import io
import json
import tarfile
from itertools import product
from pathlib import Path

import numpy as np

from hawaii.example_data.emoji_vqa import card, packages, prepare
from hawaii.example_data.emoji_vqa.concepts import GROUPS
from hawaii.example_data.emoji_vqa.packages import TEST_VENDOR, VENDORS, Package


NUM_PER_GROUP = 8
# A color that only the drawings of the test's vendor have.
TEST_COLOR = (255, 0, 255)
NAMES = ["".join(letters) for letters in product("bdfg", "aeiou", "klmn")][: NUM_PER_GROUP * len(GROUPS)]


def make_archive(package: Package, members: dict, root: Path) -> Package:
    """Writes a package into a registry at `root` and returns it with its hash."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, value in members.items():
            content = json.dumps(value).encode()
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    path = root / package.name / "-" / package.file_name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(file.getvalue())
    sha512 = base64.b64encode(hashlib.sha512(file.getvalue()).digest()).decode()
    return Package(package.name, package.version, sha512)


def body(vendor: str, number: int) -> str:
    """A drawing in a view box of 32 by 32: a bar whose position and color depend on the concept."""
    color = (
        f"rgb{TEST_COLOR}" if vendor == TEST_VENDOR else f"rgb(0, {6 * number}, {list(VENDORS).index(vendor) * 90})"
    )
    return f'<rect x="{4 + number % 5}" y="6" width="20" height="{8 + number % 9}" fill="{color}"/>'


def vendor_members(vendor: str) -> dict:
    """Files of a vendor's Iconify package."""
    license = {"title": f"License of {vendor}", "spdx": f"L-{vendor}", "url": f"https://example.org/{vendor}"}
    return {
        "icons.json": {
            "icons": {name: {"body": body(vendor, number)} for number, name in enumerate(NAMES)},
            "width": 32,
            "height": 32,
        },
        "chars.json": {f"1f{number:03x}": name for number, name in enumerate(NAMES)},
        "info.json": {"name": vendor, "author": {"name": "A", "url": "https://example.org"}, "license": license},
    }


def names_members() -> dict:
    """Files of emojibase-data about the same concepts."""
    emoji = [
        {"label": name, "hexcode": f"1F{number:03X}", "group": number % len(GROUPS), "subgroup": number % 10}
        for number, name in enumerate(NAMES)
    ]
    groups = {str(number): group for number, group in enumerate(GROUPS)}
    subgroups = {str(number): f"subgroup {number}" for number in range(10)}
    return {"en/data.json": emoji, "meta/groups.json": {"groups": groups, "subgroups": subgroups}}


def has_test_color(image) -> bool:
    """Whether an image shows a drawing of the test's vendor."""
    return bool((np.asarray(image) == TEST_COLOR).all(axis=-1).any())


def replace_packages(patch, root: Path) -> None:
    """Makes `root` a registry of stand-ins for all packages of EmojiVQA."""
    for vendor, package in list(VENDORS.items()):
        stand_in = make_archive(package, vendor_members(vendor), root)
        patch.setitem(packages.VENDORS, vendor, stand_in)
        if vendor in packages.TRAIN_VENDORS:
            patch.setitem(packages.TRAIN_VENDORS, vendor, stand_in)
    names = make_archive(packages.NAMES, names_members(), root)
    for module in (packages, prepare, card):
        patch.setattr(module, "NAMES", names)
    patch.setattr(prepare, "NUM_CONCEPTS_PER_GROUP", 7)
    for split, number in {"train": 60, "validation": 20, "test": 40, "experts": 40}.items():
        patch.setitem(prepare.NUM_CANVASES, split, number)
    patch.setenv("NPM_CONFIG_REGISTRY", root.as_uri())
