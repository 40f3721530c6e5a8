"""easy-VQA's CLIP learns from the captions, and a student starts from it."""

import json

import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

from hawaii.example_data.easy_vqa.clip import prepare_easy_clip
from hawaii.example_data.llava_rows import make_caption_row
from hawaii.files.user_error import UserError
from hawaii.modeling_hawaii.conversion.clip import convert_clip
from hawaii.training.recipes.recipe import read_recipe


CAPTIONS = ["a red circle", "a blue circle"] * 6


def test_a_student_starts_from_it(tmp_path):
    images = tmp_path / "data" / "images" / "train"
    images.mkdir(parents=True)
    rows = [make_caption_row(f"train/{number}.png", caption) for number, caption in enumerate(CAPTIONS)]
    for number, caption in enumerate(CAPTIONS):
        Image.new("RGB", (64, 64), caption.split()[1]).save(images / f"{number}.png")
    (tmp_path / "data" / "pretrain.json").write_text(json.dumps(rows))
    prepare_easy_clip(tmp_path, expert_steps=2)
    assert "license: mit" in (tmp_path / "clip" / "README.md").read_text()
    report = json.loads((tmp_path / "clip" / "clip.json").read_text())
    assert report["num_steps"] == 2 and 0 <= report["validation_accuracy"] <= 1
    student = convert_clip(str(tmp_path / "clip"), num_teacher_adapters=2).model.eval()
    clip = AutoModel.from_pretrained(tmp_path / "clip").vision_model.eval()
    picture = Image.open(images / "0.png")
    pixels = AutoImageProcessor.from_pretrained(tmp_path / "clip")(picture, return_tensors="pt")["pixel_values"]
    expected = clip(pixels, output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(student(pixels).last_hidden_state, expected)


def test_without_easy_vqa_the_command_that_makes_it_is_named(tmp_path):
    with pytest.raises(UserError, match=f"make it with `hawaii data easy_vqa --output_dir {tmp_path}`"):
        prepare_easy_clip(tmp_path)


def test_the_recipe_is_the_papers_form():
    recipe = read_recipe("easy_vqa_clip", ["output_dir=runs/mine"], use_cpu=True)
    pretrain, finetune = recipe.stages.values()
    assert pretrain.training.trainable == ["adapters", "routers", "projector", "projections"]
    assert "vision_tower" in finetune.training.trainable and finetune.options.lambda_1 == 0.5
    assert pretrain.model.vision_tower == "runs/easy_vqa/clip"
    assert [teacher.name for teacher in pretrain.teachers] == ["clip", "resnet", "poolformer"]
