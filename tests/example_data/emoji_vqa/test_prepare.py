"""The command makes the same data every time, and no training data contains drawings of the test's vendor."""

import json
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
from huggingface_hub import DatasetCard
from PIL import Image
from pyarrow.parquet import read_table
from transformers import AutoTokenizer

from hawaii.example_data.emoji_vqa import prepare as emoji_vqa
from hawaii.example_data.emoji_vqa.concepts import Concept
from hawaii.example_data.emoji_vqa.packages import TEST_VENDOR, TRAIN_VENDORS, VENDORS
from hawaii.example_data.emoji_vqa.prepare import MAX_LETTERS, prepare_emoji_vqa, written_words
from hawaii.files.user_error import UserError
from hawaii.tests.folders import changed_files
from hawaii.tests.tiny.emoji import has_test_color, replace_packages
from hawaii.training.recipes.recipe import read_recipe


@pytest.fixture(scope="module", autouse=True)
def registry(tmp_path_factory):
    """A folder of stand-ins that replaces the registry."""
    root = tmp_path_factory.mktemp("registry")
    with pytest.MonkeyPatch.context() as patch:
        replace_packages(patch, root)
        yield root


@pytest.fixture(scope="module")
def prepared(registry, tmp_path_factory):
    """The folder that the command writes. Tests that change it use a copy."""
    folder = tmp_path_factory.mktemp("prepared")
    prepare_emoji_vqa(folder, expert_steps=1)
    return folder


def rows_of(prepared, name: str) -> list[dict]:
    return json.loads((prepared / "data" / f"{name}.json").read_text(encoding="utf-8"))


def test_the_same_command_gives_the_same_bytes(prepared, tmp_path):
    prepare_emoji_vqa(tmp_path, expert_steps=1)
    assert not changed_files(prepared, tmp_path)


def test_a_killed_run_continues(prepared, registry, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(prepared, folder)
    (folder / "packages" / "noto-1.2.9.tgz").write_bytes(b"half")
    (folder / "data" / "finetune.json").unlink()
    leftover = folder / "data" / f"finetune.json.{'0' * 32}.incomplete"
    leftover.write_text("[{")
    os.utime(leftover, (0, 0))  # more than a day old
    shutil.rmtree(folder / "data" / "images" / "test")
    (folder / "data" / "images" / "train.incomplete").mkdir()
    shutil.rmtree(folder / "experts" / "vit")
    kept = folder / "experts" / "resnet" / "model.safetensors"
    kept_time = kept.stat().st_mtime_ns
    prepare_emoji_vqa(folder, expert_steps=1)
    assert not changed_files(prepared, folder)
    assert kept.stat().st_mtime_ns == kept_time


def test_no_network_is_needed_if_the_packages_exist(prepared, tmp_path, monkeypatch):
    shutil.copytree(prepared, tmp_path / "run")
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "http://127.0.0.1:9")
    prepare_emoji_vqa(tmp_path / "run", expert_steps=1)
    with pytest.raises(UserError, match="could not be downloaded"):
        prepare_emoji_vqa(tmp_path / "other", expert_steps=1)
    assert not (tmp_path / "other").exists()


def test_every_test_image_and_no_other_has_drawings_of_the_tests_vendor(prepared):
    images = prepared / "data" / "images"
    for split, vendors in (("train", set(TRAIN_VENDORS)), ("validation", set(TRAIN_VENDORS)), ("test", {TEST_VENDOR})):
        paths = list((images / split).iterdir())
        assert {path.name.rpartition("-")[0] for path in paths} == vendors
        for path in paths:
            with Image.open(path) as image:
                assert has_test_color(image) == (split == "test")


def test_no_expert_is_trained_on_the_tests_vendor_or_on_images_of_other_splits(prepared, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(emoji_vqa, "prepare_experts", lambda *arguments: calls.append(arguments))
    prepare_emoji_vqa(tmp_path, expert_steps=1)
    ((_, images, *_),) = calls
    assert not has_test_color(images.numpy())
    decoded = set()
    for path in (prepared / "data" / "images").rglob("*.png"):
        with Image.open(path) as image:
            decoded.add(image.tobytes())
    assert decoded.isdisjoint(image.numpy().tobytes() for image in images)


def test_rows_are_llava_json_with_existing_images(prepared):
    pretrain, finetune, validation = (rows_of(prepared, name) for name in ("pretrain", "finetune", "validation"))
    assert len(pretrain) == 60 and {row["image"] for row in finetune} == {row["image"] for row in pretrain}
    for rows, split in ((pretrain, "train"), (finetune, "train"), (validation, "validation")):
        assert len({row["id"] for row in rows}) == len(rows)
        for row in rows:
            assert row["image"].startswith(f"{split}/") and (prepared / "data" / "images" / row["image"]).is_file()
            turns = row["conversations"]
            assert [turn["from"] for turn in turns] == ["human", "gpt"] * (len(turns) // 2) and len(turns) <= 4
            assert [turn["value"].count("<image>") for turn in turns] == [1] + [0] * (len(turns) - 1)
    assert {len(row["conversations"]) for row in validation} == {2}
    assert all(row["conversations"][0]["value"] == "<image>" for row in pretrain)
    assert {row["question_type"] for row in validation} >= {"existence", "choice", "counting", "reading"}


def test_few_answers_are_equally_frequent(prepared):
    turns = [turn["value"] for row in rows_of(prepared, "finetune") for turn in row["conversations"]]
    answers = Counter(answer for text, answer in zip(turns[::2], turns[1::2]) if "does the image show the" in text)
    assert set(answers) == {"yes", "no"} and len(set(answers.values())) == 1


def test_the_test_questions_have_their_images(prepared, tmp_path):
    import datasets

    file = str(prepared / "data" / "test.parquet")
    rows = datasets.load_dataset("parquet", data_files={"test": file}, split="test", cache_dir=str(tmp_path))
    assert rows.column_names == ["question_id", "question", "answer", "question_type", "image_id", "image"]
    assert rows["question_id"] == list(range(len(rows)))
    for row in rows.select(range(0, len(rows), 9)):
        with Image.open(prepared / "data" / "images" / "test" / f"{row['image_id']}.png") as image:
            assert row["image"].tobytes() == image.tobytes()


def test_every_word_of_the_test_questions_is_a_token(prepared):
    tokenizer = AutoTokenizer.from_pretrained(prepared / "language_model")
    table = read_table(prepared / "data" / "test.parquet", columns=["question", "answer"])
    concepts = json.loads((prepared / "data" / "concepts.json").read_text(encoding="utf-8"))["concepts"]
    for text in [*table["question"].to_pylist(), *table["answer"].to_pylist(), *(one["name"] for one in concepts)]:
        assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"], text


def test_written_words_are_short_names_of_one_word():
    names = ["fox", "red apple", "screwdriver", "goose"]
    concepts = [Concept(name, name, "animals", "") for name in names]
    assert written_words(concepts) == ["fox", "goose"] and MAX_LETTERS == 5


def test_each_group_has_equally_many_concepts(prepared):
    chosen = json.loads((prepared / "data" / "concepts.json").read_text(encoding="utf-8"))
    assert set(Counter(concept["group"] for concept in chosen["concepts"]).values()) == {7}
    assert set(chosen["words"]) <= {concept["name"] for concept in chosen["concepts"]}


def test_the_card_names_every_vendor_and_license(prepared):
    card = DatasetCard.load(prepared / "README.md")
    assert card.data.license == sorted(["mit", *(f"l-{vendor}" for vendor in VENDORS)])
    assert card.data.to_dict()["configs"][0]["data_files"][0]["split"] == "test"
    for vendor in VENDORS:
        (line,) = (line for line in card.text.splitlines() if line.startswith(f"- `{vendor}-*.png`"))
        assert f"[License of {vendor}](https://example.org/{vendor})" in line and ("(the test)" in line) == (
            vendor == TEST_VENDOR
        )
    for part in ("existence", "choice", "counting", "reading"):
        assert f"| {part} | " in card.text
    assert "{{" not in card.text and "None" not in card.text


def test_the_files_named_by_the_recipe_exist(prepared):
    stages = read_recipe("emoji_vqa", [f"output_dir={prepared}"], use_cpu=True).stages
    named = [stage.data.data_path for stage in stages.values()] + [stages["finetune"].data.eval_data_path]
    first = stages["pretrain"]
    named += [*(teacher.checkpoint for teacher in first.teachers), first.model.language_model, first.data.image_folder]
    assert len(named) == 8
    assert all(Path(name).exists() for name in named)
    (vit,) = (expert.config for expert in emoji_vqa.EXPERTS if expert.name == "vit")
    # MoVE-KD's anchor needs the shape of the student's features, because it compares them without a projection.
    shapes = [(one["image_size"] // one["patch_size"], one["hidden_size"]) for one in (vit, first.model.vision_config)]
    assert shapes[0] == shapes[1]
