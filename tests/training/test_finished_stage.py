"""The folder of a finished stage is enough to load its teachers and its objective."""

import json
import os
import shutil

import pytest
import torch

from hawaii.files.run_contents import OBJECTIVE_FILE, OBJECTIVE_SETTINGS_FILE
from hawaii.files.user_error import UserError
from hawaii.tests.tiny.training import TEACHER_GRIDS, make_options, save_stage
from hawaii.training.finished_stage import ObjectiveSettings, find_stage, load_stage, read_settings, save_settings
from hawaii.training.teachers.presets import expand_teachers


@pytest.fixture(scope="module")
def saved(tmp_path_factory, teacher_folders):
    """A trained module and the folder of the run that contains it."""
    run = tmp_path_factory.mktemp("world") / "run"
    module = save_stage(run / "finetune" / "model", teacher_folders, grid_matching="learned", lambda_1=0.25)
    (run / "train_results.json").write_text(json.dumps({"stages": {"pretrain": {}, "finetune": {}}}))
    return module, run


@pytest.fixture
def copy(saved, tmp_path):
    """A copy of the stage's folder, which a test can change."""
    return shutil.copytree(saved[1] / "finetune" / "model", tmp_path / "model")


def test_the_objective_is_loaded_with_its_teachers_and_weights(saved):
    module, run = saved
    stage = load_stage(find_stage(run))
    assert [teacher.name for teacher in stage.teachers] == list(TEACHER_GRIDS)
    assert (stage.objective.options.grid_matching, stage.objective.options.lambda_1) == ("learned", 0.25)
    for loaded, trained in ((stage.objective, module.objective), (stage.student, module.student)):
        expected = trained.state_dict()
        assert loaded.state_dict().keys() == expected.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
    assert stage.processor.chat_template and not stage.student.training and not stage.objective.training


def test_a_run_its_last_stage_and_the_model_folder_give_the_same_stage(saved):
    _, run = saved
    folders = [run, run / "finetune", run / "finetune" / "model"]
    assert [find_stage(folder) for folder in folders] == [run / "finetune" / "model"] * 3


def test_a_folder_without_a_finished_stage_is_an_error(saved, copy, hub_folder, tmp_path):
    with pytest.raises(ValueError, match="nowhere is not a run of `hawaii train`: there is no such folder"):
        find_stage(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"contains no finished stage with.*A published folder has no objective"):
        find_stage(hub_folder)
    (tmp_path / "train_results.json").write_text("{")
    with pytest.raises(UserError, match=r"train_results\.json is damaged"):
        find_stage(tmp_path)
    for text in ("{}", '{"stages": {}}', '{"stages": 3}'):
        (tmp_path / "train_results.json").write_text(text)
        with pytest.raises(UserError, match=r"train_results\.json does not describe a run"):
            find_stage(tmp_path)
    (copy / OBJECTIVE_FILE).unlink()
    with pytest.raises(ValueError, match="contains no finished stage with its objective"):
        find_stage(copy)


def test_teachers_are_saved_with_all_fields_of_their_presets(tmp_path):
    teachers = ["clip", {"preset": "sam", "image_size": 512, "dtype": "float32"}]
    save_settings(ObjectiveSettings("hawaii", make_options(), expand_teachers(teachers)), tmp_path)
    clip, sam = read_settings(tmp_path).teachers
    assert (clip.name, clip.checkpoint, clip.layer) == ("clip", "openai/clip-vit-large-patch14-336", -2)
    assert (sam.name, sam.image_size, sam.dtype, sam.resample) == ("sam", 512, "float32", "bilinear")


def test_the_settings_contain_the_options_of_the_objective_only(tmp_path):
    save_settings(ObjectiveSettings("hawaii", make_options(token_scoring=False), []), tmp_path)
    settings = json.loads((tmp_path / OBJECTIVE_SETTINGS_FILE).read_text())
    assert (settings["token_scoring"], settings["teachers"]) == (False, [])
    assert read_settings(tmp_path).options == make_options(token_scoring=False)
    assert settings.keys() == {"objective", "teachers", *vars(make_options())}


def test_a_teacher_is_found_from_any_working_directory(teacher_folders, tmp_path, monkeypatch):
    name, folder = next(iter(teacher_folders.items()))
    monkeypatch.chdir(folder.parent)
    save_settings(ObjectiveSettings("hawaii", make_options(), expand_teachers([f"./{name}"])), tmp_path)
    monkeypatch.chdir(tmp_path)
    (config,) = read_settings(tmp_path).teachers
    assert (config.name, config.checkpoint) == (name, os.path.realpath(folder))


def test_a_file_that_does_not_describe_an_objective_is_an_error(tmp_path):
    for text in ("{", "[]", '{"objective": "hawai"}', '{"objective": "llava", "teachers": []}'):
        (tmp_path / OBJECTIVE_SETTINGS_FILE).write_text(text)
        with pytest.raises(UserError, match=f"{OBJECTIVE_SETTINGS_FILE} does not describe an objective"):
            read_settings(tmp_path)


def change_teacher(folder, **fields):
    settings = json.loads((folder / OBJECTIVE_SETTINGS_FILE).read_text())
    settings["teachers"][1] |= fields
    (folder / OBJECTIVE_SETTINGS_FILE).write_text(json.dumps(settings))


def test_a_missing_teacher_is_an_error(copy):
    change_teacher(copy, checkpoint="/gone/convnext")
    with pytest.raises(ValueError, match=r"The teacher convnext of .* is missing: there is no folder /gone/convnext"):
        load_stage(copy)


def test_teachers_that_differ_from_those_of_the_run_are_an_error(copy):
    change_teacher(copy, image_size=16)  # 4 x 4 cells instead of 8 x 8
    with pytest.raises(
        ValueError, match=r"teachers of .*/model differ from those that it was trained with: .* differ"
    ):
        load_stage(copy)


FILES = ["config.json", "processor_config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"]
FILES += ["chat_template.jinja", "generation_config.json"]


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(copy, name):
    (copy / name).unlink()
    with pytest.raises(UserError, match=f"{copy} is not a saved HAWAII: it has no {name}"):
        load_stage(copy)


def test_missing_weights_are_named(copy):
    (copy / "model.safetensors").unlink()
    with pytest.raises(UserError, match=f"{copy} has neither model.safetensors nor"):
        load_stage(copy)
