"""What an ablation was begun with is known again, and what has changed since is not."""

import os

import pytest

from hawaii.ablation.files import MAX_BYTES_READ, fingerprint, fingerprints


@pytest.fixture
def expert(tmp_path):
    folder = tmp_path / "vit"
    (folder / "deep").mkdir(parents=True)
    (folder / "expert.json").write_text('{"data": "old"}')
    (folder / "deep" / "weights").write_bytes(bytes(MAX_BYTES_READ + 1))
    return folder


def test_the_same_files_have_the_same_fingerprint_wherever_they_are(expert, tmp_path):
    before = fingerprint(expert)
    assert fingerprint(expert.rename(tmp_path / "moved")) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "expert.json").write_text('{"data": "new"}'),  # as long as before
        lambda folder: (folder / "deep" / "weights").write_bytes(bytes(MAX_BYTES_READ + 2)),
        lambda folder: (folder / "deep" / "weights").unlink(),
        lambda folder: (folder / "another").touch(),
        lambda folder: (folder / "expert.json").rename(folder / "deep" / "expert.json"),
    ],
    ids=["words", "size", "gone", "new", "moved"],
)
def test_changed_files_have_another(expert, change):
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
    ids=["hidden folder", "hidden file", "no file"],
)
def test_what_is_no_part_of_a_model_is_passed_over(expert, change):
    before = fingerprint(expert)
    change(expert)
    assert fingerprint(expert) == before


def test_a_file_of_data_is_read_to_its_end(tmp_path):
    path = tmp_path / "data.json"
    path.write_bytes(bytes(2 * MAX_BYTES_READ))
    before = fingerprint(path)
    path.write_bytes(bytes(2 * MAX_BYTES_READ - 1) + b"1")
    assert fingerprint(path) != before


def test_all_that_a_recipe_names_here_has_one(expert, tmp_path):
    data, questions, model = tmp_path / "data.json", tmp_path / "test.parquet", tmp_path / "llm"
    data.write_text("[]")
    questions.write_bytes(b"rows")
    model.mkdir()
    stages = {
        "pretrain": {"data_path": str(data), "language_model": str(model), "teachers": [str(expert)]},
        "finetune": {"data_path": str(tmp_path / "missing.json"), "eval_data_path": None, "vision_tower": "on/hub"}
        | {"chat_template": "{% for message in messages %}" * 200},
    }
    assert fingerprints(stages, str(questions)).keys() == {str(data), str(expert), str(model), str(questions)}
    assert fingerprints({}, None) == {}


def test_a_folder_may_be_named_by_a_number(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "2024").mkdir()
    assert fingerprints({"pretrain": {"language_model": 2024, "data_path": "data.json"}}, None).keys() == {"2024"}
