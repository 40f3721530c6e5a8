"""What an ablation was begun with is known again, and what has changed since is not."""

import pytest

from hawaii.evaluation.ablation_files import MAX_BYTES_READ, fingerprint, fingerprints


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


def test_all_that_a_recipe_names_here_has_one(expert, tmp_path):
    data, questions, model = tmp_path / "data.json", tmp_path / "test.parquet", tmp_path / "llm"
    data.write_text("[]")
    questions.write_bytes(b"rows")
    model.mkdir()
    stages = {
        "pretrain": {"data_path": str(data), "language_model": str(model), "teachers": [str(expert)]},
        "finetune": {"data_path": str(tmp_path / "missing.json"), "eval_data_path": None, "vision_tower": "on/hub"},
    }
    assert fingerprints(stages, str(questions)).keys() == {str(data), str(expert), str(model), str(questions)}
    assert fingerprints({}, None) == {}
