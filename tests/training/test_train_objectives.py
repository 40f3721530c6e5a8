"""Every objective runs from a recipe, resumes bit for bit, and gives a folder that loads and names its teachers."""

import json

import pytest
import torch
from transformers import AutoModelForImageTextToText

from hawaii.tests.finished_runs import assert_resumes_bit_for_bit
from hawaii.tests.tiny.training import write_recipe
from hawaii.training import train as train_module
from hawaii.training.data.conversation_dataset import ConversationDataset
from hawaii.training.recipes.objectives import OBJECTIVES
from hawaii.training.train import train


SETTINGS = {
    **{name: [f"objective={name}"] for name in OBJECTIVES},
    "repaired": ["objective=move_kd", "single_softmax=true", "detached_teacher_weights=true"],
    "fine": ["distillation=[fine]"],
    "general": ["distillation=[coarse]", "vision_config.num_teacher_adapters=0"],
}
ADAPTERS = {"hawaii": (2, 3), "fine": (2, 3), "llava": (0, 0), "radio": (0, 0)}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, teacher_folders):
    return write_recipe(tmp_path_factory.mktemp("world"), teacher_folders, max_steps=4)


@pytest.fixture(scope="module", params=SETTINGS)
def finished(request, recipe, tmp_path_factory):
    """The name of the setting, its overrides, and the folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp(request.param) / "run"
    overrides = [f"output_dir={folder}", *SETTINGS[request.param]]
    train(str(recipe), overrides)
    return request.param, overrides, folder


def test_the_hub_folder_loads_and_has_the_adapters_of_the_objective(finished):
    name, _, folder = finished
    model, report = AutoModelForImageTextToText.from_pretrained(folder / "hub", output_loading_info=True)
    assert not any(report.values())
    vision = model.config.vision_config
    assert (vision.num_teacher_adapters, vision.num_general_adapters) == ADAPTERS.get(name, (0, 3))
    with torch.no_grad():
        assert model(torch.tensor([[2, 5, *[4] * 16, 9]]), torch.randn(1, 3, 16, 16)).logits.isfinite().all()
    assert not list((folder / "hub").glob("objective*"))


def test_the_results_name_the_objective_and_its_teachers(finished):
    name, _, folder = finished
    stages = json.loads((folder / "train_results.json").read_text())["stages"].values()
    for stage in stages:
        assert stage["objective"] == (name if name in OBJECTIVES else "move_kd" if name == "repaired" else "hawaii")
        expected = {"vit": [4, 4, 16], "convnext": [8, 8, 16]} if name != "llava" else {}
        assert {teacher: facts["grid"] for teacher, facts in stage["teachers"].items()} == expected


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(finished, recipe, tmp_path):
    _, overrides, folder = finished
    assert_resumes_bit_for_bit(recipe, overrides, folder, tmp_path)


def test_llava_loads_no_teachers_and_makes_no_images_for_them(recipe, tmp_path, monkeypatch):
    sizes, loaded = [], []
    monkeypatch.setattr(train_module, "load_teachers", lambda configs, *options: loaded.extend(configs) or [])

    def record_size(self, *args, **kwargs):
        sizes.append(kwargs["teacher_image_size"])
        original(self, *args, **kwargs)

    original = ConversationDataset.__init__
    monkeypatch.setattr(ConversationDataset, "__init__", record_size)
    train(str(recipe), [f"output_dir={tmp_path}", "objective=llava", "max_steps=1", "teachers=[./nowhere]"])
    assert sizes == [None, None] and loaded == []


def test_different_objectives_in_two_stages_are_an_error_before_anything_runs(recipe, tmp_path):
    problem = r"stage finetune: objective is 'llava' here and 'hawaii' in stage pretrain, but a later stage continues"
    with pytest.raises(ValueError, match=problem):
        train(str(recipe), [f"output_dir={tmp_path / 'run'}", "stages.finetune.objective=llava"])
    assert not (tmp_path / "run").exists()


def test_a_recipe_without_an_anchor_is_an_error(recipe, tmp_path, teacher_folders):
    overrides = [f"output_dir={tmp_path}", "objective=move_kd", f"teachers=[{teacher_folders['convnext']}]"]
    with pytest.raises(ValueError, match=r"None of the teachers \(convnext\) is a vision transformer"):
        train(str(recipe), overrides)
