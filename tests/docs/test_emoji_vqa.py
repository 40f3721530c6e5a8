"""What docs/emoji_vqa.md shows is what the command fetches, draws and trains, and its commands are understood."""

import re
import shlex
import subprocess

import pytest

from hawaii.__main__ import parse
from hawaii.example_data.emoji_vqa.packages import NAMES, TEST_VENDOR, VENDORS
from hawaii.example_data.emoji_vqa.prepare import EXPERTS
from hawaii.tests.documents import ROOT, blocks, read
from hawaii.training.recipes.recipe import read_recipe


DOCUMENT = read("docs/emoji_vqa.md")
LINES = [line for block in blocks(DOCUMENT, "bash") for line in block.splitlines()]


def rows(section: str) -> list[list[str]]:
    """The cells of the table under a heading, without its head."""
    found = re.findall(r"^\| (.+) \|$", DOCUMENT.split(f"## {section}")[1].split("\n## ")[0], flags=re.MULTILINE)
    return [row.split(" | ") for row in found[2:]]


@pytest.mark.parametrize("line", LINES)
def test_every_command_is_understood_and_its_recipe_is_there(line):
    words = shlex.split(line)
    arguments = parse(words[words.index("hawaii") + 1 :])
    assert arguments.command in ("data", "train", "evaluate")
    if arguments.command == "train":
        assert {"pretrain", "finetune"} == set(read_recipe(str(ROOT / arguments.recipe), use_cpu=True).stages)


def test_make_emoji_is_the_first_of_them():
    assert "`make emoji` is the first of these" in DOCUMENT
    said = subprocess.run(["make", "-n", "emoji"], cwd=ROOT, capture_output=True, text=True).stdout
    assert f"/{LINES[0]} " in said.replace("\n", " ")


def test_every_package_is_named_and_the_tests_vendor_is_told():
    shown = {row[0]: row[-1] for row in rows("What is fetched")}
    assert shown.keys() == {package.name for package in (*VENDORS.values(), NAMES)}
    assert [name for name, use in shown.items() if use == "the test alone"] == [VENDORS[TEST_VENDOR].name]


def test_each_expert_is_there():
    assert {row[0].lower() for row in rows("The experts")} == {expert.name for expert in EXPERTS}


def test_the_questions_add_up():
    numbers = [int(row[2].replace(",", "")) for row in rows("What is asked")]
    assert len(numbers) == 7 and f"{sum(numbers):,} questions" in DOCUMENT
