"""Runs whose second stage cuts images into tiles, after a first stage with one square per image, as in LLaVA-NeXT."""

import json
import re

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from hawaii.files.user_error import UserError
from hawaii.tests.finished_runs import assert_resumes_bit_for_bit
from hawaii.tests.tiny.training import make_image, write_recipe
from hawaii.training.train import train


PINPOINTS = [[16, 32], [32, 16], [32, 32]]
SETTINGS = {
    "hawaii": [],
    "whole pictures": ["distill_tiles=false"],
    "move_kd": ["objective=move_kd"],
    "radio": ["objective=radio"],
    "llava": ["objective=llava"],
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, teacher_folders):
    folder = tmp_path_factory.mktemp("world")
    path = write_recipe(
        folder,
        teacher_folders,
        max_steps=4,
        stages={
            "pretrain": {"chat_template": "plain", "trainable": ["adapters", "routers", "projector"]},
            "finetune": {"gradient_accumulation_steps": 2, "image_grid_pinpoints": PINPOINTS},
        },
    )
    for number, name in enumerate(sorted((folder / "images").iterdir())):
        make_image(number, 10 + 7 * (number % 4), 10 + 9 * (number % 3)).save(name)
    return path


@pytest.fixture(scope="module", params=SETTINGS)
def finished(request, recipe, tmp_path_factory):
    """The overrides of a setting, and the folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp(request.param.split()[0]) / "run"
    overrides = [f"output_dir={folder}", *SETTINGS[request.param]]
    train(str(recipe), overrides)
    return overrides, folder


def test_tiles_begin_in_the_second_stage(finished):
    _, folder = finished
    first, second = (json.loads((folder / name / "config.json").read_text()) for name in ("pretrain/model", "hub"))
    assert first.get("image_grid_pinpoints") is None and second["image_grid_pinpoints"] == PINPOINTS
    assert not [name for name in load_file(folder / "pretrain" / "model" / "model.safetensors") if "newline" in name]
    newline = load_file(folder / "hub" / "model.safetensors")["model.image_newline"]
    assert newline.shape == (32,) and newline.isfinite().all() and newline.std() > 0.05


def test_the_published_model_reads_tiles(finished):
    _, folder = finished
    model, report = AutoModelForImageTextToText.from_pretrained(folder / "hub", output_loading_info=True)
    assert not any(report.values())
    processor = AutoProcessor.from_pretrained(folder / "hub", trust_remote_code=True)
    inputs = processor([Image.new("RGB", (40, 20), "red")], "<image> what color", return_tensors="pt")
    assert inputs["pixel_values"].shape[0] == 3 and inputs["image_sizes"].tolist() == [[20, 40]]
    with torch.no_grad():
        assert model(**inputs).logits.isfinite().all()


@pytest.mark.parametrize("finished", ["hawaii", "whole pictures"], indirect=True)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(finished, recipe, tmp_path):
    overrides, folder = finished
    assert_resumes_bit_for_bit(recipe, overrides[1:], folder, tmp_path)


def test_an_empty_list_makes_each_image_one_square_again(recipe, tmp_path):
    stages = ["stages.pretrain.image_grid_pinpoints=[[16, 32]]", "stages.finetune.image_grid_pinpoints=[]"]
    train(str(recipe), [f"output_dir={tmp_path / 'run'}", *stages])
    folder = tmp_path / "run"
    first, second = (json.loads((folder / name / "config.json").read_text()) for name in ("pretrain/model", "hub"))
    assert first["image_grid_pinpoints"] == [[16, 32]] and second.get("image_grid_pinpoints") is None
    assert not [name for name in load_file(folder / "hub" / "model.safetensors") if "newline" in name]


@pytest.mark.parametrize("pinpoints", ["[[16, 30]]", "[16, 32]", "[[16]]", "[[0, 16]]", "[[16, wide]]"])
def test_other_sizes_are_refused_before_training(recipe, tmp_path, pinpoints):
    overrides = [f"output_dir={tmp_path / 'run'}", f"stages.finetune.image_grid_pinpoints={pinpoints}"]
    with pytest.raises(UserError, match=re.escape("stage finetune: image_grid_pinpoints is")):
        train(str(recipe), overrides)
    assert not (tmp_path / "run" / "pretrain").exists()
