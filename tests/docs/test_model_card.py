"""docs/model_card.md: its example of a recipe's card is valid, and its command completes a card."""

import shutil

import yaml

from hawaii.__main__ import main
from hawaii.files.atomic import write_json
from hawaii.files.manifest import write_manifest
from hawaii.hub_cards.card import write_card
from hawaii.hub_cards.card_options import CardOptions
from hawaii.tests.documents import blocks, read
from hawaii.tests.tiny.models import FACTS


DOCUMENT = read("docs/model_card.md")


def test_the_example_of_a_card_is_valid():
    (example,) = blocks(DOCUMENT, "yaml")
    options = CardOptions(**yaml.safe_load(example)["card"])
    assert options.checked_license is not None and options.language == ["en", "de"]
    assert [each.facts["name"] for each in options.datasets] == ["liuhaotian/LLaVA-Instruct-150K", "Our charts"]


def test_the_command_gives_a_folder_its_license(hub_folder, tmp_path, monkeypatch, capsys):
    (command,) = blocks(DOCUMENT, "bash")
    folder = shutil.copytree(hub_folder, tmp_path / "runs" / "NAME" / "hub")
    write_json(folder / "training.json", {**FACTS, "card": {}})
    write_card(folder)
    write_manifest(folder, {}, left_out=["README.md"])
    monkeypatch.chdir(tmp_path)
    program, *words = command.split()
    assert program == "hawaii" and main([word for word in words if word != "--dry-run"][:3]) == 2
    assert "names no license" in capsys.readouterr().err
    assert main(words) == 0
