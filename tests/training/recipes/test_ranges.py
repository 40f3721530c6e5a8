"""Numbers that no training can have are refused when a recipe is read."""

import dataclasses

import pytest

from hawaii.files.user_error import UserError
from hawaii.tests.tiny.training import save_recipe
from hawaii.training.recipes.options import OPTIONS
from hawaii.training.recipes.ranges import RANGES
from hawaii.training.recipes.recipe import read_recipe


@pytest.fixture
def recipe(tmp_path):
    options = {"tokenizer": "x", "text_config": {}, "vision_config": {}, "teachers": "clip", "report_to": "none"}
    data = {"data_path": "x.json", "image_folder": "x", "use_cpu": True}
    stages = {"pretrain": {}, "finetune": {}}
    return save_recipe(tmp_path, {"output_dir": "run", **options, **data, "stages": stages})


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("max_steps=0", "max_steps is 0; it must be at least 1, or -1 for num_train_epochs."),
        ("max_steps=-5", "max_steps is -5; it must be at least 1, or -1 for num_train_epochs."),
        ("num_train_epochs=0", "num_train_epochs is 0; it must be a finite number above 0."),
        ("num_train_epochs=.inf", "num_train_epochs is inf; it must be a finite number above 0."),
        ("learning_rate=-1", "learning_rate is -1; it must be a finite number that is at least 0."),
        ("learning_rate=.nan", "learning_rate is nan; it must be a finite number that is at least 0."),
        ("weight_decay=.inf", "weight_decay is inf; it must be a finite number that is at least 0."),
        ("warmup_steps=-1", "warmup_steps is -1; it must be a finite number that is at least 0."),
        ("adam_beta2=1", "adam_beta2 is 1; it must be at least 0 and below 1."),
        ("max_grad_norm=-1", "max_grad_norm is -1; it must be a finite number that is at least 0."),
        ("gradient_accumulation_steps=0", "gradient_accumulation_steps is 0; it must be at least 1."),
        ("per_device_train_batch_size=-1", "per_device_train_batch_size is -1; it must be at least 1."),
        ("dataloader_num_workers=-1", "dataloader_num_workers is -1; it must be a finite number that is at least 0."),
        ("max_length=0", "max_length is 0; it must be at least 1."),
        ("seed=-1", r"seed is -1; it must be at least 0 and below 2\*\*32."),
        ("save_steps=0", "save_steps is 0; it must be above 0, or save_strategy no."),
        ("num_processes=0", "num_processes is 0; it must be at least 1."),
        ("lambda_1=-1", "lambda_1 is -1; it must be a finite number that is at least 0."),
        ("lambda_2=-0.1", "lambda_2 is -0.1; it must be a finite number that is at least 0."),
        ("lambda_1=.nan", "lambda_1 is nan; it must be a finite number that is at least 0."),
        ("trainable=[]", "trainable is empty, so the stage would train nothing: name one or more of vision_tower, "),
        ("save_strategy=best", "save_strategy is 'best', but no checkpoint is chosen; it must be steps, epoch or no."),
        ("use_liger_kernel=true", "use_liger_kernel is true, but its kernels replace layers of a model that"),
        ("torch_compile_backend=nope", "torch_compile_backend is 'nope'; it must be one of no, eager, aot_eager, "),
    ],
)
def test_an_impossible_value_is_refused_with_its_stage(recipe, option, message):
    with pytest.raises(UserError, match=f"recipe.yaml, stage finetune: {message}"):
        read_recipe(recipe, [f"stages.finetune.{option}"])


def test_the_limits_are_allowed(recipe):
    limits = ["max_steps=-1", "learning_rate=0", "max_grad_norm=0", "lambda_2=0", "warmup_steps=0.1", "save_steps=0.5"]
    (training, *_) = (stage.training for stage in read_recipe(recipe, limits).stages.values())
    assert (training.max_steps, training.learning_rate, training.save_steps) == (-1, 0, 0.5)


@pytest.mark.parametrize("name", ["logging", "save", "eval"])
def test_an_interval_that_is_not_used_may_be_0(recipe, name):
    read_recipe(recipe, [f"{name}_strategy=no", f"{name}_steps=0"])


def test_every_range_is_that_of_an_option():
    from peft import LoraConfig

    assert set(RANGES) <= {*OPTIONS, *(field.name for field in dataclasses.fields(LoraConfig))}
