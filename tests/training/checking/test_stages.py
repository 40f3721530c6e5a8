"""A mistake in a later stage is found before the first one trains."""

import shutil

import pytest

from hawaii.files.user_error import UserError
from hawaii.tests.tiny.training import write_recipe
from hawaii.training.checking.stages import check_stages
from hawaii.training.recipes.recipe import read_recipe
from hawaii.training.train import train


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, teacher_folders):
    return write_recipe(tmp_path_factory.mktemp("stages"), teacher_folders, max_steps=1)


@pytest.fixture(scope="module")
def pretrained(recipe):
    """The finished first stage of a run."""
    train(str(recipe), ["stages.finetune.max_steps=1"])
    run = recipe.parent / "run"
    shutil.rmtree(run / "finetune")
    return run / "pretrain" / "model"


MISTAKES = [
    ("report_to=comet_ml", "report_to is comet_ml, which cannot be used"),
    ("report_to=nope", "report_to is nope, which cannot be used: nope is not supported"),
    ("optim=lomo", "optim is lomo .*which cannot be used: You need to install"),
    ("optim_args=nope", r"optim is adamw_torch.* \(optim_args: nope\), which cannot be used"),
    ("lr_scheduler_type=cosine_with_min_lr", "lr_scheduler_type is cosine_with_min_lr .*which cannot be used: One of"),
    ("data_path=/nope.json", "data_path: There is no data file /nope.json"),
    ("data_path=/nope.parquet", "data_path: There is no data set /nope.parquet"),
    ("image_folder=/nope", "There is no image folder /nope"),
    ("teacher_cache=/nope", "The teacher_cache /nope contains no features"),
    ("chat_template=/nope.jinja", "There is no chat template '/nope.jinja'"),
    ("tokenizer=/nope", "tokenizer.*/nope"),
    ("max_length=5", "max_length is 5, but an image alone has 16 tokens"),
    (
        "image_grid_pinpoints=[[16, 24]]",
        r"image_grid_pinpoints is \[\[16, 24\]\]; it must be a list of .* multiples of 16",
    ),
    ("lora={target_modules: [qproj]}", "target_modules of lora names 'qproj'"),
    ("lora={bias: al}", "PEFT cannot add the lora of the recipe"),
    ("strategy=ddp", "The recipe demands strategy: ddp, but this run has single"),
    ("num_processes=2", "The recipe demands num_processes: 2, but this run has 1"),
]


@pytest.mark.parametrize(("mistake", "message"), MISTAKES)
def test_a_mistake_in_the_last_stage_is_found_before_the_first(recipe, tmp_path, mistake, message):
    with pytest.raises(UserError, match=f"recipe.yaml, stage finetune: .*{message}"):
        train(str(recipe), [f"output_dir={tmp_path}", f"stages.finetune.{mistake}"])
    assert not (tmp_path / "pretrain").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        # The whole picture, and 8 rows of 4 patches with a newline.
        (["stages.finetune.max_length=56"], "max_length is 56, but an image of the largest grid alone has 56 tokens"),
        (
            ["stages.finetune.max_batch_tiles=2"],
            "max_batch_tiles is 2, but an image of the largest grid .* has 3 tiles",
        ),
    ],
)
def test_bounds_that_the_largest_grid_exceeds_are_refused(recipe, options, message):
    """Also in a stage that inherits its tiles from the one before it."""
    for first in ("image_grid_pinpoints=[[32, 16]]", "stages.pretrain.image_grid_pinpoints=[[32, 16], [16, 16]]"):
        plan = read_recipe(recipe, [first, *options], use_cpu=True)
        with pytest.raises(UserError, match=f"recipe.yaml, stage finetune: {message}"):
            check_stages(plan, ["pretrain", "finetune"], None)
    plan = read_recipe(recipe, [first, *options, "stages.finetune.image_grid_pinpoints=[]"], use_cpu=True)
    check_stages(plan, ["pretrain", "finetune"], None)  # one square has one tile, and 16 tokens


def test_wrong_grids_of_the_first_stage_are_named(recipe):
    plan = read_recipe(recipe, ["stages.pretrain.image_grid_pinpoints=[[16, 24]]"], use_cpu=True)
    with pytest.raises(UserError, match="recipe.yaml, stage pretrain: image_grid_pinpoints is .* multiples of 16"):
        check_stages(plan, ["pretrain", "finetune"], None)


def test_bounds_that_the_largest_grid_reaches_are_accepted(recipe):
    options = ["image_grid_pinpoints=[[32, 16]]", "max_length=57", "max_batch_tiles=3"]
    check_stages(read_recipe(recipe, options, use_cpu=True), ["pretrain", "finetune"], None)


def test_missing_questions_are_found(recipe):
    options = ["stages.finetune.eval_data_path=/nope.json", "stages.finetune.eval_strategy=steps"]
    with pytest.raises(UserError, match="stage finetune: eval_data_path: There is no data file /nope.json"):
        check_stages(read_recipe(recipe, options), ["pretrain", "finetune"], None)


def test_a_stage_that_trains_no_part_of_the_student_is_refused(recipe):
    options = ["objective=llava", "stages.pretrain.trainable=[projector]", "stages.finetune.trainable=[adapters]"]
    with pytest.raises(
        UserError, match=r"stage finetune: trainable is \['adapters'\], but the stage has none of these"
    ):
        check_stages(read_recipe(recipe, options), ["pretrain", "finetune"], None)
    rates = [
        "objective=llava",
        "stages.pretrain.trainable=[projector]",
        "stages.finetune.learning_rates={adapters: 1}",
    ]
    with pytest.raises(UserError, match="stage finetune: learning_rates has a rate for adapters, but no parameter"):
        check_stages(read_recipe(recipe, rates), ["pretrain", "finetune"], None)


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("chat_template=/nope.jinja", "There is no chat template '/nope.jinja'"),
        ("lora={target_modules: [qproj]}", "target_modules of lora names 'qproj'"),
    ],
)
def test_after_a_finished_stage_its_student_is_checked(recipe, pretrained, mistake, message):
    # The configuration from which the first stage started is not needed any more.
    plan = read_recipe(recipe, ["text_config={hidden_act: nope}", f"stages.finetune.{mistake}"])
    with pytest.raises(UserError, match=f"stage finetune: {message}"):
        check_stages(plan, ["finetune"], pretrained)


def test_finished_stages_are_not_checked(recipe, pretrained):
    check_stages(read_recipe(recipe, ["stages.pretrain.data_path=/nope.json"]), ["finetune"], pretrained)
