"""The tables of docs/emoji_vqa.md agree with the code, and its commands can be parsed."""

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
LINES = [line for block in blocks(DOCUMENT, "bash") for line in block.splitlines() if line.startswith("hawaii")]


def rows(section: str) -> list[list[str]]:
    """Cells of the table under a heading, without the header."""
    lines = re.findall(r"^\| (.+) \|$", DOCUMENT.split(f"## {section}")[1].split("\n## ")[0], flags=re.MULTILINE)
    return [row.split(" | ") for row in lines[2:]]


@pytest.mark.parametrize("line", LINES)
def test_every_command_can_be_parsed_and_its_recipe_exists(line):
    words = shlex.split(line)
    arguments = parse(words[words.index("hawaii") + 1 :])
    assert arguments.command in ("data", "train", "evaluate")
    if arguments.command == "train":
        assert {"pretrain", "finetune"} == set(read_recipe(str(ROOT / arguments.recipe), use_cpu=True).stages)


def test_make_emoji_runs_the_first_command():
    assert "`make emoji` runs the first command" in DOCUMENT
    printed = subprocess.run(["make", "-n", "emoji"], cwd=ROOT, capture_output=True, text=True).stdout
    assert f"/{LINES[0]} " in printed.replace("\n", " ")


def test_every_package_is_listed_and_the_tests_vendor_is_marked():
    shown = {row[0]: row[-1] for row in rows("Downloads")}
    assert shown.keys() == {package.name for package in (*VENDORS.values(), NAMES)}
    assert [name for name, use in shown.items() if use == "the test only"] == [VENDORS[TEST_VENDOR].name]


def test_every_expert_is_listed():
    assert {row[0].lower() for row in rows("The experts")} == {expert.name for expert in EXPERTS}


def test_the_questions_add_up():
    numbers = [int(row[2].replace(",", "")) for row in rows("Questions")]
    assert len(numbers) == 7 and f"{sum(numbers):,} questions" in DOCUMENT
