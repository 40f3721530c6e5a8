"""docs/lora.md: its options are those of a recipe, and its commands run."""

import shlex

import pytest
import yaml

from hawaii.__main__ import main
from hawaii.tests.documents import blocks, read
from hawaii.training.recipes.recipe import read_recipe


DOCUMENT = read("docs/lora.md")


def test_its_options_are_those_of_the_recipe_with_a_lora(tmp_path):
    (block,) = blocks(DOCUMENT, "yaml")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"extends": "hawaii_vicuna_7b", **yaml.safe_load(block)}))
    stage = read_recipe(tmp_path / "recipe.yaml", use_cpu=True).stages["finetune"]
    expected = read_recipe("hawaii_vicuna_7b_lora", use_cpu=True).stages["finetune"]
    assert stage.model == expected.model
    assert stage.training.learning_rate == expected.training.learning_rate
    assert stage.training.learning_rates.items() <= expected.training.learning_rates.items()


def test_its_commands_count_parameters(capsys):
    (block,) = blocks(DOCUMENT, "bash")
    for line in block.splitlines():
        command = shlex.split(line)
        assert command[0] == "hawaii"
        # ConvNeXt and EVA-02 need timm, which is not installed everywhere.
        extra = ["teachers=[clip]"] if "hawaii_vicuna_7b_lora" in line else []
        assert main([*command[1:], *extra]) in (0, None)
        assert "| LoRA of finetune |" in capsys.readouterr().out


@pytest.mark.parametrize("word", ["trained.safetensors", "merge: false", "learning_rates", "packing: true"])
def test_it_names_what_it_describes(word):
    assert f"`{word}" in DOCUMENT
