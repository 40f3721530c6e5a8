"""docs/training.md: its recipe is one, and its code gives what it says."""

import subprocess
import sys

import pytest
import yaml

from hawaii.tests.documents import ROOT, blocks, read
from hawaii.training.recipes.recipe import parse_stage, read_recipe


DOCUMENT = read("docs/training.md")


def test_what_it_adds_to_a_recipe_asks_while_that_stage_trains_and_no_other(tmp_path):
    (block,) = blocks(DOCUMENT, "yaml")
    recipe = {"extends": str(ROOT / "training" / "recipes" / "easy_vqa.yaml"), **yaml.safe_load(block)}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    stages = read_recipe(str(tmp_path / "recipe.yaml"))
    parsed = {name: parse_stage({**options, "use_cpu": True}, name) for name, options in stages.items()}
    assert [data.eval_data_path for _, data, _ in parsed.values()] == [None, "runs/easy_vqa/data/validation.json"]
    assert [args.eval_strategy for _, _, args in parsed.values()] == ["no", "steps"]
    assert parsed["finetune"][2].eval_steps == 200


def test_the_metric_forgives_case_and_a_period_and_nothing_else(tmp_path):
    (block,) = blocks(DOCUMENT, "python")
    options = {"cwd": ROOT, "capture_output": True, "text": True, "timeout": 120}
    ran = subprocess.run([sys.executable, "-c", block], **options)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "{'accuracy': 0.5}"


@pytest.mark.parametrize("recipe", ["easy_vqa", "emoji_vqa"])
def test_the_recipes_of_both_data_sets_start_from_a_language_model_that_reads(recipe):
    for name, options in read_recipe(str(ROOT / "training" / "recipes" / f"{recipe}.yaml")).items():
        model_args, _, _ = parse_stage({**options, "use_cpu": True}, name)
        assert model_args.language_model.endswith("/language_model")
        assert model_args.text_config is None and model_args.tokenizer is None
