"""A folder that can be published."""

import shutil

import pytest

from hawaii.files.atomic import write_json
from hawaii.files.manifest import write_manifest
from hawaii.hub_cards.card import write_card
from hawaii.tests.tiny.models import FACTS


@pytest.fixture
def folder(hub_folder, tmp_path):
    folder = shutil.copytree(hub_folder, tmp_path / "hub")
    write_json(folder / "training.json", FACTS)
    write_card(folder)
    write_manifest(folder, {}, left_out=["README.md"])
    return folder
