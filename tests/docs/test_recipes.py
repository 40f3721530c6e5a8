"""docs/recipes.md: its recipe is one, its table is the command's, and its commands are valid."""

import shlex

from hawaii.__main__ import build_parser
from hawaii.tests.documents import blocks, read
from hawaii.training.recipes.built_in import describe_recipes
from hawaii.training.recipes.recipe import read_recipe


DOCUMENT = read("docs/recipes.md")
(RECIPE,) = blocks(DOCUMENT, "yaml")
COMMANDS = [shlex.split(line) for block in blocks(DOCUMENT, "bash") for line in block.splitlines()]


def test_the_table_is_what_hawaii_recipes_prints():
    assert describe_recipes() in DOCUMENT


def test_the_recipe_has_two_stages_with_their_own_and_shared_options(tmp_path):
    (tmp_path / "mine.yaml").write_text(RECIPE)
    recipe = read_recipe(tmp_path / "mine.yaml", use_cpu=True)
    pretrain, finetune = recipe.stages.values()
    assert (pretrain.name, finetune.name) == ("pretrain", "finetune")
    assert pretrain.training.learning_rate == 1e-3 and finetune.training.learning_rate == 2e-5
    assert pretrain.training.per_device_train_batch_size == finetune.training.per_device_train_batch_size == 16
    assert "vision_tower" not in pretrain.training.trainable and "vision_tower" in finetune.training.trainable
    assert [teacher.name for teacher in pretrain.teachers] == ["clip", "dinov2-base"]
    (tmp_path / "other.yaml").write_text("extends: mine.yaml\nstages: {finetune: {learning_rate: 1e-5}}\n")
    other = read_recipe(tmp_path / "other.yaml", use_cpu=True).stages
    assert other["finetune"].training.learning_rate == 1e-5
    assert other["finetune"].data.data_path == finetune.data.data_path


def test_the_commands_parse_and_their_settings_are_options(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(RECIPE)
    for program, *words in COMMANDS:
        arguments = build_parser().parse_args(words)
        read_recipe(arguments.recipe, getattr(arguments, "overrides", ()), use_cpu=True)
        assert program == "hawaii"
    changed = read_recipe("easy_vqa", COMMANDS[-2][3:], use_cpu=True).stages
    assert [stage.training.max_steps for stage in changed.values()] == [1000, 200]
    assert {stage.model.vision_config["lora_rank"] for stage in changed.values()} == {4}
