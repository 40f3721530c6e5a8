"""Every objective runs from a recipe to a folder that loads, resumes to the last bit, and reports who taught."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from hawaii.tests.tiny_training import write_recipe
from hawaii.training import train as train_module
from hawaii.training.objectives import OBJECTIVES
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
    """The name of the setting, its overrides, and the folder of a run that nothing broke off."""
    folder = tmp_path_factory.mktemp(request.param) / "run"
    overrides = [f"output_dir={folder}", *SETTINGS[request.param]]
    train(str(recipe), overrides)
    return request.param, overrides, folder


def weights_of(run):
    files = sorted(run.glob("*/model/*.safetensors"))
    assert len(files) == 4  # of each stage the student and the objective
    return {f"{path.parent.parent.name} {name}": tensor for path in files for name, tensor in load_file(path).items()}


def test_the_folder_to_publish_loads_and_has_the_adapters_of_its_objective(finished):
    name, _, folder = finished
    model, report = AutoModelForImageTextToText.from_pretrained(folder / "hub", output_loading_info=True)
    assert not any(report.values())
    vision = model.config.vision_config
    assert (vision.num_teacher_adapters, vision.num_general_adapters) == ADAPTERS.get(name, (0, 3))
    with torch.no_grad():
        assert model(torch.tensor([[2, 5, *[4] * 16, 9]]), torch.randn(1, 3, 16, 16)).logits.isfinite().all()
    assert not list((folder / "hub").glob("objective*"))


def test_the_results_say_who_taught(finished):
    name, _, folder = finished
    stages = json.loads((folder / "train_results.json").read_text())["stages"].values()
    for stage in stages:
        assert stage["objective"] == (name if name in OBJECTIVES else "move_kd" if name == "repaired" else "hawaii")
        expected = {"vit": [4, 4, 16], "convnext": [8, 8, 16]} if name != "llava" else {}
        assert {teacher: facts["grid"] for teacher, facts in stage["teachers"].items()} == expected


def test_a_run_that_is_broken_off_goes_on_to_the_last_bit(finished, recipe, tmp_path):
    _, overrides, folder = finished
    shutil.copytree(folder, tmp_path / "run")
    # As a kill in the first stage leaves it.
    for left in ("hub", "finetune", "pretrain/model", "pretrain/checkpoint-4"):
        shutil.rmtree(tmp_path / "run" / left)
    (tmp_path / "run" / "train_results.json").unlink()
    train(str(recipe), [*overrides, f"output_dir={tmp_path / 'run'}"])
    expected, actual = weights_of(folder), weights_of(tmp_path / "run")
    assert actual.keys() == expected.keys()
    assert [key for key, tensor in expected.items() if not torch.equal(actual[key], tensor)] == []
    for stage in ("pretrain", "finetune"):
        logs = [
            [
                entry
                for entry in map(json.loads, (run / stage / "log.jsonl").read_text().splitlines())
                if "loss" in entry
            ]
            for run in (folder, tmp_path / "run")
        ]
        assert logs[0] == logs[1] and len(logs[0]) == 4


def test_without_teachers_none_is_loaded_and_no_image_is_made_for_them(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(train_module, "load_teachers", lambda *args: pytest.fail("a teacher was loaded"))
    sizes = []

    def look(self, *args, **kwargs):
        sizes.append(kwargs["teacher_image_size"])
        original(self, *args, **kwargs)

    original = train_module.LlavaDataset.__init__
    monkeypatch.setattr(train_module.LlavaDataset, "__init__", look)
    train(str(recipe), [f"output_dir={tmp_path}", "objective=llava", "max_steps=1", "teachers=[./nowhere]"])
    assert sizes == [None, None]


def test_stages_of_different_objectives_are_one_sentence_before_anything_runs(recipe, tmp_path):
    problem = (
        r"stage finetune: its objective is 'llava' and that of stage pretrain is 'hawaii', but a later stage goes on"
    )
    with pytest.raises(ValueError, match=problem):
        train(str(recipe), [f"output_dir={tmp_path / 'run'}", "stages.finetune.objective=llava"])
    assert not (tmp_path / "run").exists()


def test_a_recipe_without_an_anchor_is_one_sentence(recipe, tmp_path, teacher_folders):
    overrides = [f"output_dir={tmp_path}", "objective=move_kd", f"teachers=[{teacher_folders['convnext']}]"]
    with pytest.raises(ValueError, match=r"None of the teachers \(convnext\) is a vision transformer"):
        train(str(recipe), overrides)
