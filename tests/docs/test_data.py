"""docs/data.md: its records and its recipes train."""

import json
import subprocess
import sys

import pytest
import yaml

from hawaii.tests.documents import ROOT, blocks, read
from hawaii.tests.tiny.training import make_image, write_recipe
from hawaii.tests.tiny.waiting import HANG_SECONDS
from hawaii.training.data.mixture import share_counts
from hawaii.training.sources.readers import read_table
from hawaii.training.sources.source import Source
from hawaii.training.train import train


DOCUMENT = read("docs/data.md")
RECORDS = blocks(DOCUMENT, "json")[0]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The data of the document: its records, their images in a folder and in an archive, and the shards."""
    monkeypatch.chdir(tmp_path)
    for path in ("images", "packed/train2017", "shards"):
        (tmp_path / "data" / path).mkdir(parents=True)
    (tmp_path / "data" / "train.json").write_text(RECORDS)
    for seed, name in enumerate(("cat.png", "dog.png")):
        for path in ("images", "packed/train2017"):
            make_image(seed).save(tmp_path / "data" / path / name)
    zipped = "import shutil; shutil.make_archive('data/images', 'zip', 'data/packed')"
    for code in (zipped, *blocks(DOCUMENT, "python")):
        subprocess.run([sys.executable, "-c", code], check=True, timeout=HANG_SECONDS)
    return tmp_path


def test_the_records_of_both_forms_have_their_images_and_the_shard_has_those_of_the_first(folder):
    records = list(read_table("data/train.json"))
    assert [(record.id, record.images, record.problem) for record in records] == [
        ("a", ("cat.png",), None),
        (1, ("cat.png", "dog.png"), None),
    ]
    assert [message.num_images for message in records[1].messages] == [0, 2, 0]
    (row,), images = Source("data/shards").read()
    assert (row.id, row.messages) == ("a", records[0].messages)
    assert images.find(row.images[0]) == (folder / "data" / "images" / "cat.png").read_bytes()


@pytest.mark.parametrize("block", blocks(DOCUMENT, "yaml"))
def test_its_recipes_train(folder, teacher_folders, block):
    given = yaml.safe_load(block)
    changes = {"data_path": None, "image_folder": "", **given, "max_steps": 1, "save_strategy": "no"}
    recipe = write_recipe(folder / "recipe", teacher_folders, **changes, output_dir="run")
    train(str(recipe))
    assert json.loads((folder / "run" / "train_results.json").read_text())["stages"]["finetune"]["steps"] == 1


def test_its_command_names_sources(folder, teacher_folders):
    (command,) = [line for line in DOCUMENT.split("`") if line.startswith("hawaii train RECIPE 'data=")]
    override = command.split("'")[1]
    changes = {"data_path": None, "image_folder": "", "max_steps": 1, "save_strategy": "no", "output_dir": "run"}
    recipe = write_recipe(folder / "recipe", teacher_folders, **changes)
    train(str(recipe), [override])
    assert (folder / "run" / "hub").is_dir()


def test_the_shares_of_its_example():
    assert share_counts([600, 100], [3, 1]) == [600, 200]
    assert "a source of 600 records and one of 100 give 600 and 200 samples" in " ".join(DOCUMENT.split())


def test_its_keys_are_those_of_a_source():
    table = DOCUMENT[DOCUMENT.index("| key |") : DOCUMENT.index("Without weights")]
    rows = [row for row in table.splitlines()[2:] if row]
    names = {name for row in rows for name in row.split("|")[1].split("`")[1::2]}
    assert names == set(Source.__dataclass_fields__)
    assert (ROOT / "benchmarks/training/training_data.py").is_file()
