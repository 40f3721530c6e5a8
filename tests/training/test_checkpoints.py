"""A checkpoint is never incomplete, has the student's own names, and is refused if it would not resume exactly."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from hawaii import HawaiiForConditionalGeneration, HawaiiProcessor
from hawaii.files import manifest
from hawaii.files.manifest import write_manifest
from hawaii.files.run_contents import CHECKPOINT_STATE_FILES, SHARDED_STATE_FILES
from hawaii.files.user_error import UserError
from hawaii.tests.folders import contents, damage
from hawaii.tests.tiny.training import (
    build_trainer,
    make_module,
    make_options,
    make_record,
)
from hawaii.training import checkpoints
from hawaii.training.checkpoints import (
    FoundCheckpoint,
    check_state_files,
    find_checkpoint,
    load_checkpoint,
    remove_old_checkpoints,
)
from hawaii.training.finished_stage import ObjectiveSettings
from hawaii.training.trainer import HawaiiTrainer


RECORDS = [make_record(number) for number in range(6)]
FILES = ["optimizer.pt", "scheduler.pt", "trainer_state.json", "rng_state.pth", "objective.safetensors"]

FORMS = tuple(SHARDED_STATE_FILES)
SETTINGS = ObjectiveSettings("hawaii", make_options(), [])


@pytest.fixture
def make_trainer(tmp_path, teachers):
    """Makes a trainer that saves after each step, three steps by default."""

    def make_trainer(module, **kwargs):
        kwargs = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1, **kwargs}
        return build_trainer(tmp_path, module, teachers, RECORDS, per_device_train_batch_size=2, **kwargs)

    return make_trainer


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


def names_in(path):
    with safe_open(path, "pt") as file:
        return set(file.keys())


def folders(run):
    return sorted(path.name for path in run.iterdir() if path.is_dir())


# transformers would save the last one with other names than those of its parameters.
LANGUAGE_MODELS = [
    {"tie_word_embeddings": False},
    {"tie_word_embeddings": True},
    {"model_type": "mixtral", "num_local_experts": 2},
]


@pytest.mark.parametrize("text", LANGUAGE_MODELS, ids=["untied", "tied", "mixtral"])
def test_the_file_has_the_students_own_names(make_trainer, run, text):
    module = make_module(text=text)
    make_trainer(module, max_steps=1).train()
    tied = {"lm_head.weight"} if text.get("tie_word_embeddings") else set()
    assert names_in(run / "checkpoint-1" / "model.safetensors") == set(module.student.state_dict()) - tied
    assert names_in(run / "checkpoint-1" / "objective.safetensors") == set(module.objective.state_dict())


@pytest.mark.parametrize("text", LANGUAGE_MODELS, ids=["untied", "tied", "mixtral"])
def test_loading_restores_every_weight(make_trainer, run, text):
    module = make_module(text=text)
    make_trainer(module, max_steps=1).train()
    other = make_module(text=text)
    load_checkpoint(other, run / "checkpoint-1")
    saved = module.state_dict()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in other.state_dict().items())


def test_no_file_of_a_checkpoint_contains_a_teacher(make_trainer, run, teachers):
    module = make_module()
    make_trainer(module, max_steps=1).train()
    checkpoint = run / "checkpoint-1"
    tensors = [load_file(path) for path in checkpoint.glob("*.safetensors")]
    shapes = [tuple(parameter.shape) for parameter in module.parameters()]
    assert sorted(tuple(tensor.shape) for file in tensors for tensor in file.values()) == sorted(shapes)
    optimizer = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    assert len(optimizer["state"]) == len(shapes)
    teacher_parameters = [p for teacher in teachers for p in teacher.model.parameters() if p.numel() > 16]
    for file in tensors:
        for tensor in file.values():
            assert not any(tensor.shape == p.shape and torch.equal(tensor, p) for p in teacher_parameters)


def save_checkpoint(path, step):
    """A folder like a checkpoint."""
    path.mkdir(parents=True)
    (path / "model.safetensors").write_bytes(bytes(100))
    write_manifest(path, {"step": step})
    return path


def test_the_newest_whole_checkpoint_is_found(tmp_path):
    assert find_checkpoint(tmp_path / "nowhere") is None
    assert find_checkpoint(tmp_path) is None
    save_checkpoint(tmp_path / "checkpoint-9", 9)
    save_checkpoint(tmp_path / "checkpoint-10", 10)
    for name in ("incomplete/checkpoint-11", "checkpoint-12.incomplete.old", "checkpoint-013", "model"):
        save_checkpoint(tmp_path / name, 13)
    damage(tmp_path / "checkpoint-12.incomplete.old" / "model.safetensors", "missing")  # half removed
    assert find_checkpoint(tmp_path) == FoundCheckpoint(tmp_path / "checkpoint-10", {"step": 10}, [])


def test_a_whole_checkpoint_whose_step_was_saved_again_when_the_run_was_killed_is_found(tmp_path):
    save_checkpoint(tmp_path / "checkpoint-10.incomplete.old", 10)
    save_checkpoint(tmp_path / "incomplete" / "checkpoint-10", 10)
    assert find_checkpoint(tmp_path) == FoundCheckpoint(tmp_path / "checkpoint-10", {"step": 10}, [])
    assert not (tmp_path / "checkpoint-10.incomplete.old").exists()


def test_damaged_checkpoints_are_skipped_from_the_newest_on_each_with_its_reason(tmp_path):
    paths = [save_checkpoint(tmp_path / f"checkpoint-{step}", step) for step in range(1, 6)]
    damage(paths[4] / "model.safetensors", "flipped")
    damage(paths[3] / "manifest.json", "missing")
    damage(paths[2] / "model.safetensors", "truncated")
    found = find_checkpoint(tmp_path)
    assert (found.path, found.identity) == (paths[1], {"step": 2})
    assert found.skipped == [
        f"{paths[4]} is skipped, because {paths[4]}/model.safetensors is damaged: its content has changed since it "
        "was saved.",
        f"{paths[3]} is skipped, because {paths[3]} lacks manifest.json, so its files cannot be checked.",
        f"{paths[2]} is skipped, because {paths[2]}/model.safetensors is truncated: it has 50 of 100 bytes.",
    ]


def test_a_checkpoint_with_the_name_of_another_step_is_skipped(tmp_path):
    path = save_checkpoint(tmp_path / "checkpoint-1", 1)
    save_checkpoint(tmp_path / "checkpoint-2", 2).rename(tmp_path / "checkpoint-9")
    found = find_checkpoint(tmp_path)
    other = tmp_path / "checkpoint-9"
    assert (found.path, found.identity) == (path, {"step": 1})
    assert found.skipped == [
        f"{other} is skipped, because {other} is of step 2 by its manifest: the folder was renamed."
    ]


def test_a_file_added_to_a_checkpoint_matters_only_if_a_resume_could_read_it(tmp_path):
    path = save_checkpoint(tmp_path / "checkpoint-1", 1)
    (path / "note.txt").write_text("good accuracy")
    assert find_checkpoint(tmp_path).path == path
    for name in ("model-extra.safetensors", "scaler.pt", "rng_state_1.pth"):
        (path / name).write_bytes(b"")
        with pytest.raises(UserError, match=f"{path / name} is not in the manifest of its folder"):
            find_checkpoint(tmp_path)
        (path / name).unlink()


def test_a_stage_whose_checkpoints_are_all_damaged_does_not_start_over_by_itself(tmp_path):
    for step in (1, 2):
        damage(save_checkpoint(tmp_path / f"checkpoint-{step}", step) / "model.safetensors", "empty")
    problem = (
        "None of the 2 checkpoints in .* is whole: .*checkpoint-2/model.safetensors is empty. Restore one of them"
    )
    with pytest.raises(UserError, match=problem):
        find_checkpoint(tmp_path)


@pytest.mark.parametrize(("form", "other"), [FORMS, FORMS[::-1]])
def test_a_resume_with_another_form_of_sharding_is_an_error(tmp_path, form, other):
    for name in SHARDED_STATE_FILES[form]:
        (tmp_path / name).touch()
    check_state_files(tmp_path, SHARDED_STATE_FILES[form])
    for names in (SHARDED_STATE_FILES[other], CHECKPOINT_STATE_FILES):
        with pytest.raises(
            UserError,
            match="lacks .*optimizer.*, which this run needs, although the checkpoint is whole: start the run with "
            "the strategy",
        ):
            check_state_files(tmp_path, names)


@pytest.mark.parametrize(
    ("file", "name"),
    [("model", "lm_head.weight"), ("objective", "coarse_projection.0.bias")],
    ids=["model", "objective"],
)
@pytest.mark.parametrize("change", ["lacks", "renames", "reshapes"])
def test_weights_of_another_model_are_an_error_that_names_one(make_trainer, run, file, name, change):
    module = make_module()
    make_trainer(module, max_steps=1).train()
    path = run / "checkpoint-1" / f"{file}.safetensors"
    tensors = load_file(path)
    tensor = tensors.pop(name)
    if change == "renames":
        tensors[f"{name}s"] = tensor
    if change == "reshapes":
        tensors[name] = torch.cat([tensor, tensor])
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(UserError, match=f"checkpoint-1.* does not fit this recipe: .* {name} is .*another output_dir"):
        load_checkpoint(module, run / "checkpoint-1")


@pytest.mark.parametrize("file", ["model", "objective"])
def test_the_error_about_a_truncated_file_names_it(make_trainer, run, file):
    module = make_module()
    make_trainer(module, max_steps=1).train()
    path = run / "checkpoint-1" / f"{file}.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match=rf"checkpoint-1/{file}\.safetensors cannot be read: "):
        load_checkpoint(module, run / "checkpoint-1")


def test_a_checkpoint_has_a_temporary_name_while_it_is_written(make_trainer, run, monkeypatch):
    states = []
    original = HawaiiTrainer._save_rng_state

    def record(self, output_dir):
        states.append((folders(run), Path(output_dir).name))
        original(self, output_dir)

    monkeypatch.setattr(HawaiiTrainer, "_save_rng_state", record)
    make_trainer(make_module(), max_steps=2).train()
    assert states == [(["incomplete"], "checkpoint-1"), (["checkpoint-1", "incomplete"], "checkpoint-2")]
    assert folders(run) == ["checkpoint-1", "checkpoint-2"]


def save_error():
    return OSError(errno.ENOSPC, "No space left on device")


# Errors as seen on a full disk: Rust libraries and torch raise no OSError.
ERRORS = {
    "os": save_error,
    "safetensors": lambda: SafetensorError("Error while serializing: I/O error: No space left (os error 28)"),
    "tokenizers": lambda: Exception("No space left on device (os error 28)"),
    "torch": lambda: RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed"),
    "torch's end": lambda: RuntimeError("[enforce fail at inline_container.cc:668] . unexpected pos 704 vs 598"),
}


@pytest.mark.parametrize(
    ("owner", "name", "error"),
    [
        (HawaiiForConditionalGeneration, "save_pretrained", "safetensors"),
        (checkpoints, "save_file", "safetensors"),
        (HawaiiProcessor, "save_pretrained", "tokenizers"),
        (torch, "save", "torch"),
        (torch, "save", "torch's end"),
        (manifest, "write_text", "os"),
        (os, "fsync", "os"),
        (Path, "rename", "os"),
    ],
    ids=["model", "objective", "processor", "optimizer", "end", "manifest", "flush", "rename"],
)
def test_a_full_disk_is_one_sentence_and_keeps_the_previous_checkpoint(
    make_trainer, run, monkeypatch, owner, name, error
):
    original, before = getattr(owner, name), {}

    def fail_after_the_first(*args, **kwargs):
        if (run / "checkpoint-1").is_dir():
            before.update(before or contents(run / "checkpoint-1"))
            raise ERRORS[error]()
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, fail_after_the_first)
    reason = "a file could only be written in part" if "torch" in error else "No space left on device"
    problem = (
        rf"checkpoint-2 could not be written \({reason}; [\d,]+ bytes are free there\); the last checkpoint is .*"
    )
    with pytest.raises(UserError, match=f"^{run}/{problem}{run}/checkpoint-1: make room and run the same command"):
        make_trainer(make_module()).train()
    monkeypatch.undo()
    assert folders(run) == ["checkpoint-1"]
    assert set(FILES) | {"model.safetensors", "config.json", "manifest.json"} <= set(before)
    assert contents(run / "checkpoint-1") == before
    assert find_checkpoint(run).skipped == []
    load_checkpoint(make_module(), run / "checkpoint-1")


def test_an_error_that_is_not_of_the_disk_keeps_its_traceback(make_trainer, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("a bug")

    monkeypatch.setattr(HawaiiProcessor, "save_pretrained", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        make_trainer(make_module()).train()


def test_old_checkpoints_are_removed_after_a_new_one_is_complete(make_trainer, run):
    make_trainer(make_module(), save_total_limit=2, max_steps=3).train()
    assert folders(run) == ["checkpoint-2", "checkpoint-3"]


def test_a_kill_while_an_old_checkpoint_is_removed_damages_none(make_trainer, run, monkeypatch):
    remove = shutil.rmtree

    def interrupt(path, **kwargs):
        if Path(path).name.startswith("checkpoint-") and Path(path).is_dir():
            next(Path(path).iterdir()).unlink()
            raise KeyboardInterrupt
        remove(path, **kwargs)

    monkeypatch.setattr(shutil, "rmtree", interrupt)
    trainer = make_trainer(make_module(), save_total_limit=1)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    monkeypatch.undo()
    assert folders(run) == ["checkpoint-1.incomplete.old", "checkpoint-2"]
    assert find_checkpoint(run).path == run / "checkpoint-2"
    load_checkpoint(make_module(), run / "checkpoint-2")
    trainer.save_whole(run / "model", {}, SETTINGS)  # as in a resume that does not write a further checkpoint
    assert folders(run) == ["checkpoint-2", "model"]


def test_without_a_limit_only_leftovers_are_removed(tmp_path):
    for name in ("checkpoint-1", "checkpoint-2", "checkpoint-3.incomplete.old"):
        (tmp_path / name).mkdir()
    remove_old_checkpoints(tmp_path, None, step=2)
    assert folders(tmp_path) == ["checkpoint-1", "checkpoint-2"]
    remove_old_checkpoints(tmp_path, 1, step=2)
    assert folders(tmp_path) == ["checkpoint-2"]


def test_the_limit_does_not_count_the_damaged_checkpoints_of_later_steps(make_trainer, run):
    make_trainer(make_module(), max_steps=4, save_steps=2).train()
    damage(run / "checkpoint-4" / "optimizer.pt", "flipped")
    # It continues from step 2, saves step 3, and could stop there.
    trainer = make_trainer(make_module(), max_steps=3, save_total_limit=1)
    trainer.train(resume_from_checkpoint=str(find_checkpoint(run).path))
    assert folders(run) == ["checkpoint-3", "checkpoint-4"]
    assert find_checkpoint(run).path == run / "checkpoint-3"


def test_a_finished_model_has_the_names_of_the_language_models_published_checkpoints(make_trainer, run, tmp_path):
    # transformers 5 keeps all experts of a layer in one tensor; its files and 4.57 do not.
    module = make_module(text={"model_type": "mixtral", "num_local_experts": 2})
    make_trainer(module).save_whole(run / "model", {}, SETTINGS)
    module.student.save_pretrained(tmp_path / "own")
    names = load_file(run / "model" / "model.safetensors").keys()
    assert names == load_file(tmp_path / "own" / "model.safetensors").keys()
    assert any("experts.1." in name for name in names)


def test_a_resumed_training_ends_with_equal_weights(make_trainer, run):
    torch.manual_seed(0)
    straight = make_module()
    make_trainer(straight).train()
    shutil.rmtree(run / "checkpoint-3")
    shutil.rmtree(run / "checkpoint-2")
    torch.manual_seed(1)
    resumed = make_module()  # other weights, which the checkpoint replaces
    make_trainer(resumed).train(resume_from_checkpoint=str(find_checkpoint(run).path))
    expected = straight.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.state_dict().items())


LOAD_ELSEWHERE = """
import sys
sys.modules["hawaii"] = None  # importing the package fails even if it is installed
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor
torch.set_num_threads(1)
inputs, output = load_file(sys.argv[1]), {}
for folder in sys.argv[3:]:
    model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    assert processor.image_token == "<image>"
    with torch.no_grad():
        output[folder] = model(**inputs).logits
save_file(output, sys.argv[2])
"""


@pytest.mark.slow
def test_a_checkpoint_and_a_stages_model_load_without_the_package(make_trainer, run, tmp_path):
    module = make_module()
    trainer = make_trainer(module, max_steps=1)
    trainer.train()
    trainer.save_whole(run / "model", {}, SETTINGS)
    inputs = {"input_ids": torch.tensor([[2, 5, *[4] * 16, 9]]), "pixel_values": torch.randn(1, 3, 16, 16)}
    save_file(inputs, tmp_path / "inputs.safetensors")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {"HF_HOME": str(tmp_path / "home"), "PYTHONSAFEPATH": "1"}
    found = [str(run / "checkpoint-1"), str(run / "model")]
    arguments = [str(tmp_path / "inputs.safetensors"), str(tmp_path / "outputs.safetensors"), *found]
    subprocess.run(
        [sys.executable, "-c", LOAD_ELSEWHERE, *arguments], env=environment, cwd=tmp_path, check=True, timeout=300
    )
    with torch.no_grad():
        expected = module.student.eval()(**inputs).logits
    outputs = load_file(tmp_path / "outputs.safetensors")
    for folder in found:
        torch.testing.assert_close(outputs[folder], expected)


def test_a_finished_stage_has_model_objective_and_report_but_no_training_state(make_trainer, run):
    module = make_module()
    trainer = make_trainer(module, max_steps=1)
    trainer.train()
    trainer.save_whole(run / "model", {"steps": 1}, SETTINGS)
    assert json.loads((run / "model" / "stage.json").read_text()) == {"steps": 1}
    names = {path.name for path in (run / "model").iterdir()}
    assert {"model.safetensors", "objective.safetensors", "config.json", "processor_config.json"} <= names
    assert not names & {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}
    assert folders(run) == ["checkpoint-1", "model"]


@pytest.mark.parametrize("has_other_files", [False, True])
def test_a_stage_without_weights_is_not_finished(make_trainer, run, monkeypatch, has_other_files):
    def save_nothing(self, output_dir):  # like transformers where it does not gather a sharded model
        Path(output_dir).mkdir(parents=True)
        if has_other_files:
            (Path(output_dir) / "config.json").write_text("{}")

    monkeypatch.setattr(HawaiiTrainer, "save_model", save_nothing)
    with pytest.raises(UserError, match="model.incomplete has no weights, so the stage is not finished"):
        make_trainer(make_module()).save_whole(run / "model", {}, SETTINGS)
    assert not (run / "model").exists()
