"""EmojiVQA's CLIP learns from the names in the captions, and a student starts from it."""

import json
import shutil

import pytest
import torch
from transformers import AutoImageProcessor, CLIPModel

from hawaii.example_data import clip as shared
from hawaii.example_data.emoji_vqa import clip
from hawaii.example_data.emoji_vqa.clip import prepare_emoji_clip, without_places
from hawaii.example_data.emoji_vqa.prepare import prepare_emoji_vqa
from hawaii.files.user_error import UserError
from hawaii.tests.folders import changed_files
from hawaii.tests.tiny.emoji import has_test_color, replace_packages
from hawaii.training.recipes.recipe import read_recipe
from hawaii.training.students.student import build_student
from hawaii.training.teachers.loading import load_teachers


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with EmojiVQA of stand-ins, and the CLIP and the experts after one step."""
    with pytest.MonkeyPatch.context() as patch:
        replace_packages(patch, tmp_path_factory.mktemp("registry"))
        folder = tmp_path_factory.mktemp("runs") / "emoji_vqa"
        prepare_emoji_vqa(folder, expert_steps=1)
        prepare_emoji_clip(folder, expert_steps=1)
        yield folder


def test_the_recipe_starts_from_the_clip_and_learns_from_its_copy(prepared):
    recipe = read_recipe("emoji_vqa_clip", [f"output_dir={prepared.parent / 'emoji_vqa_clip'}"], use_cpu=True)
    first = recipe.stages["pretrain"]
    student, processor = build_student(first.model, first.data, 3, "hawaii")
    found = CLIPModel.from_pretrained(prepared / "clip").vision_model.eval()
    image = AutoImageProcessor.from_pretrained(prepared / "clip")
    pixels = image(torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8), return_tensors="pt")["pixel_values"]
    expected = found(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    # Fresh adapters add nothing.
    vision = student.model.vision_tower.eval()
    patches = vision(pixels).last_hidden_state[:, 1:]
    torch.testing.assert_close(patches, expected)
    teachers = load_teachers(first.distilled_teachers, torch.device("cpu"), False)
    assert [(teacher.name, teacher.grid[:2]) for teacher in teachers] == [
        ("clip", (4, 4)),
        ("convnext", (8, 8)),
        ("eva", (4, 4)),
    ]
    assert first.training.trainable == ["adapters", "routers", "projector", "projections"]
    assert recipe.stages["finetune"].options.lambda_1 == 0.5


def test_a_second_run_trains_only_what_is_missing(prepared, tmp_path, monkeypatch, capsys):
    shutil.copytree(prepared, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "clip")
    prepare_emoji_clip(tmp_path / "run", expert_steps=1)
    assert not changed_files(prepared, tmp_path / "run")
    monkeypatch.setattr(shared, "train_clip", None)
    prepare_emoji_clip(tmp_path / "run", expert_steps=1)
    assert "The CLIP already exists: it finds the caption of" in capsys.readouterr().out


def test_its_pictures_are_those_of_the_training_alone(prepared, monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(clip, "prepare_clip", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(clip, "prepare_experts", lambda *arguments: calls.append(arguments))
    prepare_emoji_clip(prepared)
    (pictures, captions, *_), (_, images, *_) = calls
    rows = json.loads((prepared / "data" / "pretrain.json").read_text())
    assert {path.parent.name for path in pictures} == {"train"} and len(pictures) == len(rows) == len(captions)
    assert captions[0] == without_places(rows[0]["conversations"][1]["value"])
    assert not has_test_color(images.numpy())


def test_without_emoji_vqa_the_command_that_makes_it_is_named(tmp_path):
    with pytest.raises(UserError, match=f"make it with `hawaii data emoji_vqa --output_dir {tmp_path}`"):
        prepare_emoji_clip(tmp_path)


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("fox top left, red apple right, laptop bottom", "fox, red apple, laptop"),
        ("egg center, word sun top", "egg, word sun"),
        ("top hat bottom right", "top hat"),
    ],
)
def test_the_places_of_a_caption_are_removed(caption, expected):
    assert without_places(caption) == expected
