"""Fingerprints of the same files are equal, and those of changed files differ."""

import os

import pytest
import yaml

from hawaii.ablation.fingerprints import MAX_BYTES_READ, fingerprint, fingerprints
from hawaii.training.recipes.recipe import read_recipe


@pytest.fixture
def expert(tmp_path):
    folder = tmp_path / "vit"
    (folder / "deep").mkdir(parents=True)
    (folder / "expert.json").write_text('{"data": "old"}')
    (folder / "deep" / "weights").write_bytes(bytes(MAX_BYTES_READ + 1))
    return folder


def test_a_moved_folder_has_the_same_fingerprint(expert, tmp_path):
    before = fingerprint(expert)
    assert fingerprint(expert.rename(tmp_path / "moved")) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "expert.json").write_text('{"data": "new"}'),  # same size
        lambda folder: (folder / "deep" / "weights").write_bytes(bytes(MAX_BYTES_READ + 2)),
        lambda folder: (folder / "deep" / "weights").unlink(),
        lambda folder: (folder / "another").touch(),
        lambda folder: (folder / "expert.json").rename(folder / "deep" / "expert.json"),
    ],
    ids=["content", "size", "removed", "added", "moved"],
)
def test_changed_files_have_another_fingerprint(expert, change):
    before = fingerprint(expert)
    change(expert)
    assert fingerprint(expert) != before


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / ".cache").mkdir() or (folder / ".cache" / "lock").touch(),
        lambda folder: (folder / ".gitattributes").touch(),
        lambda folder: os.mkfifo(folder / "pipe"),
    ],
    ids=["hidden folder", "hidden file", "pipe"],
)
def test_files_that_do_not_belong_to_a_model_are_ignored(expert, change):
    before = fingerprint(expert)
    change(expert)
    assert fingerprint(expert) == before


def test_a_large_data_file_is_read_completely(tmp_path):
    path = tmp_path / "data.json"
    path.write_bytes(bytes(2 * MAX_BYTES_READ))
    before = fingerprint(path)
    path.write_bytes(bytes(2 * MAX_BYTES_READ - 1) + b"1")
    assert fingerprint(path) != before


def test_every_local_file_of_a_recipe_has_a_fingerprint(expert, tmp_path):
    for name in ("data.json", "test.parquet"):
        (tmp_path / name).write_text("[]")
    (tmp_path / "llm").mkdir()
    recipe = {
        "output_dir": str(tmp_path / "run"),
        "vision_tower": "on/hub",
        "language_model": str(tmp_path / "llm"),
        "teachers": [str(expert), "owner/resnet"],
        "image_folder": str(tmp_path),
        "chat_template": "{% for message in messages %}" * 200,
        "stages": {
            "pretrain": {"data_path": str(tmp_path / "data.json")},
            "finetune": {"data_path": str(tmp_path / "missing.json")},
        },
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    found = fingerprints(read_recipe(tmp_path / "recipe.yaml", use_cpu=True), str(tmp_path / "test.parquet"))
    assert found.keys() == {str(tmp_path / name) for name in ("data.json", "test.parquet", "llm", "vit")}
