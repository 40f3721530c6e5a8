"""A resume uses only undamaged checkpoints of the same run; otherwise it uses an older checkpoint, or stops."""

import json
import shutil

import pytest
import yaml

from hawaii.__main__ import main
from hawaii.files.manifest import check_manifest, read_identity, write_manifest
from hawaii.tests.finished_runs import weights_of
from hawaii.tests.folders import DAMAGES, contents, damage
from hawaii.tests.tiny.training import write_recipe
from hawaii.training.checkpoints import find_checkpoint
from hawaii.training.identity import describe_start


STAGES = ("pretrain", "finetune")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, teacher_folders):
    """A recipe of two stages with four steps each that saves every second step."""
    return write_recipe(tmp_path_factory.mktemp("world"), teacher_folders, max_steps=4)


@pytest.fixture(scope="module")
def finished(recipe):
    """The folder of an uninterrupted run."""
    assert main(["train", str(recipe)]) == 0
    return recipe.parent / "run"


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the run."""
    return shutil.copytree(finished, tmp_path / "run")


def interrupt(run, stage):
    """Removes files, as if the run had been killed in a stage after its last checkpoint."""
    left = {"pretrain": ["hub", "finetune", "pretrain/model"], "finetune": ["hub", "finetune/model"]}[stage]
    for name in left:
        shutil.rmtree(run / name)
    (run / "train_results.json").unlink()


def refused(capsys, recipe, run, *overrides):
    """Returns the only line of the error with which the command refuses to train."""
    capsys.readouterr()
    before = contents(run)
    assert main(["train", str(recipe), f"output_dir={run}", *overrides]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert contents(run) == before
    return error


def test_every_checkpoint_stage_and_published_folder_agrees_with_its_manifest(finished):
    for stage in STAGES:
        identities = [check_manifest(finished / stage / name) for name in ("checkpoint-2", "checkpoint-4", "model")]
        assert [identity.pop("step") for identity in identities] == [2, 4, 4]
        assert identities[0] == identities[1] == identities[2]
        assert identities[0]["world_size"] == 1 and identities[0]["samples"] == 14
    published = check_manifest(finished / "hub")
    assert published.keys() == {"recipe", "data", "start", "step", "world_size"}
    assert published["recipe"] == identities[0]["recipe"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_damaged_newest_checkpoint_is_never_the_one_that_is_found(run, stage):
    """Damages each of 25 or more files in four ways, including those that a resume does not read."""
    newest = run / stage / "checkpoint-4"
    files = contents(newest)
    assert {
        "optimizer.pt",
        "rng_state.pth",
        "model.safetensors",
        "manifest.json",
        "trainer_state.json",
    } <= files.keys()
    for name, content in files.items():
        for kind in DAMAGES:
            damage(newest / name, kind)
            found = find_checkpoint(run / stage)
            assert found.path == run / stage / "checkpoint-2", (name, kind)
            assert len(found.skipped) == 1 and name in found.skipped[0], (name, kind)
            (newest / name).write_bytes(content)
    assert find_checkpoint(run / stage).path == newest


@pytest.mark.parametrize(
    ("stage", "name", "kind"),
    [("pretrain", "optimizer.pt", "missing"), ("finetune", "model.safetensors", "flipped")],
)
def test_a_run_that_falls_back_ends_bit_for_bit_as_the_uninterrupted_one(
    recipe, finished, run, capsys, stage, name, kind
):
    interrupt(run, stage)
    damage(run / stage / "checkpoint-4" / name, kind)
    assert main(["train", str(recipe), f"output_dir={run}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (skipped,) = [line for line in lines if "is skipped" in line]
    assert skipped.startswith(f"{run / stage}/checkpoint-4 is skipped, because ") and name in skipped
    assert f"Resuming from {run / stage}/checkpoint-2." in lines
    expected, actual = weights_of(finished, *STAGES), weights_of(run, *STAGES)
    assert actual.keys() == expected.keys()
    assert [key for key, tensor in expected.items() if not tensor.equal(actual[key])] == []
    assert find_checkpoint(run / stage).path.name == "checkpoint-4"  # written again


def test_a_run_without_a_whole_checkpoint_says_how_to_go_on(recipe, run, capsys):
    interrupt(run, "finetune")
    for step in (2, 4):
        damage(run / "finetune" / f"checkpoint-{step}" / "scheduler.pt", "truncated")
    error = refused(capsys, recipe, run)
    assert "None of the 2 checkpoints in" in error and "checkpoint-4/scheduler.pt is truncated" in error
    for step in (2, 4):
        shutil.rmtree(run / "finetune" / f"checkpoint-{step}")
    assert main(["train", str(recipe), f"output_dir={run}"]) == 0


@pytest.mark.parametrize("stage", STAGES)
def test_a_finished_stage_that_is_not_as_it_was_saved_is_refused_and_the_file_named(recipe, run, capsys, stage):
    shutil.rmtree(run / "hub")
    if stage == "pretrain":
        shutil.rmtree(run / "finetune")
    model = run / stage / "model"
    files = {name: content for name, content in contents(model).items() if not name.endswith("_hawaii.py")}
    assert {"stage.json", "objective.json", "objective.safetensors", "manifest.json", "tokenizer.json"} <= files.keys()
    for name, content in files.items():
        for kind in DAMAGES:
            damage(model / name, kind)
            error = refused(capsys, recipe, run)
            assert error.startswith(f"hawaii train: {model}") and name in error, (name, kind)
            (model / name).write_bytes(content)
    (model / "vocab.json").write_text("{}")  # a tokenizer would read it
    assert f"{model / 'vocab.json'} is not in the manifest of its folder" in refused(capsys, recipe, run)


CHANGES = [
    ("learning_rate=0.01", "learning_rate is 0.001 there and 0.01 here"),
    ("seed=7", "seed is 42 there and 7 here"),
    ("per_device_train_batch_size=1", "per_device_train_batch_size is 2 there and 1 here"),
    ("max_steps=8", "max_steps is 4 there and 8 here"),
    ("objective=llava", "objective is 'hawaii' there and 'llava' here"),
    ("lambda_1=0.25", "lambda_1 is 0.5 there and 0.25 here"),
    ("bf16=true", "bf16 is False there and True here"),
    ("optim=sgd", "optim is 'adamw_torch"),
    ("text_config.hidden_size=64", "text_config.hidden_size is 32 there and 64 here"),
    ("image_share=0.5", "image_share is 1.0 there and 0.5 here"),
    ("torch_compile=true", "torch_compile is False there and True here"),
    ("gradient_accumulation_steps=4", "gradient_accumulation_steps is 1 there and 4 here"),
    ("stages.pretrain.trainable=[projector]", "trainable is ['adapters', 'routers', 'projector'] there and ['proj"),
]


@pytest.mark.parametrize(("change", "difference"), CHANGES)
def test_a_recipe_that_differs_in_what_matters_is_refused_and_the_first_difference_named(
    recipe, run, capsys, change, difference
):
    error = refused(capsys, recipe, run, change)
    assert f"{run}/pretrain/model was trained with another recipe: {difference}" in error
    interrupt(run, "pretrain")
    error = refused(capsys, recipe, run, change)
    assert f"{run}/pretrain/checkpoint-4 was trained with another recipe: {difference}" in error
    assert error.endswith(
        f"Undo the change, give the recipe another output_dir, or remove {run}/pretrain to train this stage again."
    )


def test_other_teachers_are_refused(recipe, run, capsys):
    teachers = yaml.safe_load(recipe.read_text())["teachers"]
    error = refused(capsys, recipe, run, f"teachers={json.dumps(teachers[:1])}")
    assert "teachers is ['vit', 'convnext'] there and ['vit'] here" in error
    other = [{"checkpoint": teachers[0], "dtype": "bfloat16"}, teachers[1]]
    error = refused(capsys, recipe, run, f"teachers={json.dumps(other)}")
    assert "teacher.vit.dtype is 'float32' there and 'bfloat16' here" in error


def test_options_without_an_effect_may_change(recipe, finished, run):
    interrupt(run, "finetune")
    overrides = ["save_steps=1", "logging_steps=3", "dataloader_num_workers=1", "save_total_limit=1"]
    overrides += ["report_to=none", "seed=42", "stages.finetune.gradient_accumulation_steps=2"]  # 42 is the default
    assert main(["train", str(recipe), f"output_dir={run}", *overrides]) == 0
    expected, actual = weights_of(finished, *STAGES), weights_of(run, *STAGES)
    assert [key for key, tensor in expected.items() if not tensor.equal(actual[key])] == []


def test_data_models_and_runs_may_be_moved_but_not_changed(recipe, run, tmp_path, capsys, teacher_folders):
    interrupt(run, "finetune")
    moved = shutil.copytree(recipe.parent, tmp_path / "moved", ignore=shutil.ignore_patterns("run"))
    shutil.copytree(next(iter(teacher_folders.values())).parent, tmp_path / "teachers")
    text = recipe.read_text().replace(str(recipe.parent), str(moved))
    text = text.replace(str(next(iter(teacher_folders.values())).parent), str(tmp_path / "teachers"))
    (moved / "recipe.yaml").write_text(text)
    assert str(recipe.parent) not in text
    data = moved / "data.json"
    original = data.read_text()
    data.write_text(original.replace("red", "blue"))
    error = refused(capsys, moved / "recipe.yaml", run)
    assert f"{run}/pretrain/model was trained on other data: {data} has changed since" in error
    data.write_text(original)
    teacher = tmp_path / "teachers" / "vit"
    files = {teacher / name: "teacher.vit.checkpoint" for name in ("config.json", "model.safetensors")}
    for path, option in {**files, moved / "tokenizer" / "tokenizer.json": "tokenizer"}.items():
        content = path.read_bytes()
        damage(path, "flipped")  # of the same size
        assert f"another recipe: {option}.content_hash is " in refused(capsys, moved / "recipe.yaml", run)
        path.write_bytes(content)
    (teacher / "README.md").write_text("not read")
    assert main(["train", str(moved / "recipe.yaml"), f"output_dir={run}"]) == 0


def test_a_stage_does_not_continue_after_the_one_before_it_was_trained_again(recipe, run, capsys):
    assert main(["train", str(recipe), f"output_dir={run.parent / 'other'}", "max_steps=1", "seed=3"]) == 0
    starts = {describe_start(folder / "pretrain" / "model") for folder in (run, run.parent / "other")}
    checkpoint = run / "finetune" / "checkpoint-4"
    identity = read_identity(checkpoint)
    assert len(starts) == 2 and identity["start"] in starts
    interrupt(run, "finetune")
    write_manifest(checkpoint, {**identity, "start": (starts - {identity["start"]}).pop()})
    error = refused(capsys, recipe, run)
    assert f"{checkpoint} started from other weights: the stage before it is another one, or has been trained" in error


def test_finished_stages_of_changed_data_are_not_exported_but_those_of_removed_data_are(recipe, run, capsys):
    shutil.rmtree(run / "hub")
    data = recipe.parent / "data.json"
    original = data.read_text()
    data.write_text(original.replace("red", "blue"))
    try:
        error = refused(capsys, recipe, run)
        data.unlink()
        assert main(["train", str(recipe), f"output_dir={run}"]) == 0
    finally:
        data.write_text(original)
    assert f"{run}/pretrain/model was trained on other data: {data} has changed since. Undo the change" in error
    assert (run / "hub").is_dir()


@pytest.mark.parametrize(
    ("stages", "problem"),
    [
        (["finetune"], "{run}/finetune/model started from other weights: the stage before it is another one"),
        (["finetune", "pretrain"], "{run}/finetune/model started from other weights: the stage before it is another"),
        (["pretrain", "middle", "finetune"], "Stage finetune is finished, but stage middle before it is not: restore"),
    ],
)
def test_finished_stages_in_another_order_are_refused(recipe, run, tmp_path, capsys, stages, problem):
    shutil.rmtree(run / "hub")
    content = yaml.safe_load(recipe.read_text())
    content["stages"] = {name: content["stages"].get(name, {}) for name in stages}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    assert problem.format(run=run) in refused(capsys, tmp_path / "other.yaml", run)


def test_a_stage_before_a_finished_one_is_not_trained_again(recipe, run, capsys):
    shutil.rmtree(run / "pretrain")
    error = refused(capsys, recipe, run)
    assert f"restore {run}/pretrain/model, or remove {run}/finetune to train stage finetune again after it" in error


def test_a_finished_stage_whose_start_was_trained_again_is_not_exported(recipe, run, capsys):
    model = run / "finetune" / "model"
    write_manifest(model, {**read_identity(model), "start": "other"})
    assert f"{model} started from other weights" in refused(capsys, recipe, run)


def test_an_export_of_the_same_model_is_left_as_the_user_edited_it(recipe, run, capsys):
    hub = run / "hub"
    (hub / "README.md").write_text("a better card")
    (hub / "logo.png").write_bytes(b"logo")
    before = contents(hub)
    assert main(["train", str(recipe), f"output_dir={run}"]) == 0
    assert f"{hub} already has this model and is left as it is." in capsys.readouterr().out
    assert contents(hub) == before
    damage(hub / "model.safetensors", "flipped")
    write_manifest(hub, read_identity(hub))  # weights of another machine's run of the same recipe
    assert main(["train", str(recipe), f"output_dir={run}"]) == 0
    assert contents(hub)["model.safetensors"] == before["model.safetensors"] and "logo.png" not in contents(hub)
