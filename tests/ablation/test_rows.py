"""Each row's recipe is the user's, but for what makes the row, and training reads it."""

from pathlib import Path

import pytest
import yaml

from hawaii.ablation.rows import DEFAULT_ROWS, ROWS, make_recipe, rows_of, write_recipe
from hawaii.tests.documents import ROOT
from hawaii.training.recipes.recipe import parse_stage, read_recipe


RECIPES = sorted((ROOT / "training" / "recipes").glob("*.yaml"))


@pytest.fixture
def stages():
    """The embedded default with its data in `data_here`."""
    return read_recipe(str(ROOT / "training/recipes/easy_vqa.yaml"), ["output_dir=data_here", "lambda_2=0.1"])


def read_back(path, recipe):
    """The arguments of each stage, as training has them."""
    write_recipe(path, recipe)
    return {name: parse_stage({**options, "use_cpu": True}, name) for name, options in read_recipe(str(path)).items()}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_training_reads_every_row_of_every_recipe_here(tmp_path, path):
    stages = read_recipe(str(path))
    rows = rows_of(next(iter(stages.values()))["teachers"])
    for name, row in rows.items():
        arguments = read_back(tmp_path / f"{name}.yaml", make_recipe(stages, row, 3, tmp_path / name))
        assert list(arguments) == list(stages)
        for stage, (_, _, training) in arguments.items():
            assert training.seed == 3
            assert training.output_dir == str(tmp_path / name / stage)


def test_data_stays_where_the_recipe_has_it_and_the_run_goes_elsewhere(stages):
    recipe = make_recipe(stages, ROWS["llava"], 0, Path("runs/llava"))
    assert recipe["output_dir"] == "runs/llava"
    assert recipe["language_model"] == "data_here/language_model"
    assert recipe["stages"]["pretrain"]["data_path"] == "data_here/data/pretrain.json"
    assert "data_path" not in recipe and "vision_config" not in recipe["stages"]["finetune"]


def options_of(stages, name, stage="finetune"):
    """What one row differs in from the recipe, in a stage; fields of vision_config by themselves."""
    recipe = make_recipe(stages, rows_of(stages[stage]["teachers"])[name], 0, Path("run"))
    assert not any(set(recipe["stages"][each]) & {"objective", "distillation", "vision_config"} for each in stages)
    changed = {key: value for key, value in recipe.items() if stages[stage].get(key) != value}
    vision = changed.pop("vision_config", {})
    given = stages[stage]["vision_config"]
    changed |= {f"vision_config.{key}": value for key, value in vision.items() if given.get(key, "") != value}
    return {key: value for key, value in changed.items() if key not in ("output_dir", "stages")}


HAWAII = {"objective": "hawaii", "distillation": ["fine", "coarse"], "token_scoring": True}
NO_GENERAL = {"vision_config.num_general_adapters": 0}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("llava", {"objective": "llava"}),
        ("fine", {**HAWAII, "distillation": ["fine"], "token_scoring": False, **NO_GENERAL}),
        ("token_scoring", {**HAWAII, "distillation": ["fine"], **NO_GENERAL}),
        ("hawaii", HAWAII),
        ("radio", {"objective": "radio", "lambda_2": None}),
        ("teacher_adapters", {**HAWAII, **NO_GENERAL}),
        ("general_adapters", {**HAWAII, "distillation": ["coarse"], "vision_config.num_teacher_adapters": 0}),
    ],
)
def test_each_row_differs_in_what_its_name_says(stages, name, options):
    assert options_of(stages, name) == options


def test_each_row_of_table_2_adds_one_thing_to_the_one_before(stages):
    fine, token_scoring, hawaii = (options_of(stages, name) for name in ("fine", "token_scoring", "hawaii"))
    assert {key for key in fine if fine[key] != token_scoring[key]} == {"token_scoring"}
    assert {key for key in token_scoring if token_scoring[key] != hawaii.get(key)} == {"distillation", *NO_GENERAL}


def test_move_kd_has_its_own_adapters_whatever_the_recipe_says_of_hawaiis(stages):
    assert stages["pretrain"]["vision_config"]["lora_rank"] == 8
    faithful, repaired = options_of(stages, "move_kd"), options_of(stages, "move_kd_repaired")
    assert faithful["vision_config.lora_rank"] == 32 and faithful["vision_config.adapter_placement"] == "linear"
    assert faithful["vision_config.router_hidden_size"] is None and faithful["lambda_2"] is None
    changed = {key: repaired[key] for key in repaired if repaired[key] != faithful[key]}
    assert changed == {"single_softmax": True, "detached_teacher_weights": True}


def test_a_row_holds_in_every_stage_whatever_a_stage_says(tmp_path, stages):
    stages["finetune"] |= {"objective": "radio", "token_scoring": False, "seed": 7}
    arguments = read_back(tmp_path / "recipe.yaml", make_recipe(stages, ROWS["hawaii"], 3, tmp_path))
    found = [(training.objective, training.token_scoring, training.seed) for _, _, training in arguments.values()]
    assert found == [("hawaii", True, 3)] * 2


def test_what_only_some_stages_say_stays_theirs(stages):
    stages["finetune"]["save_only_model"] = True
    recipe = make_recipe(stages, ROWS["llava"], 0, Path("run"))
    assert "save_only_model" not in recipe and recipe["stages"]["finetune"]["save_only_model"] is True
    assert recipe["stages"]["pretrain"]["chat_template"] == "plain" and "chat_template" not in recipe


def test_each_teacher_alone_keeps_all_that_the_recipe_says_of_it(tmp_path):
    rows = rows_of(["clip", {"preset": "convnext", "image_size": 512}, "owner/dino.v2"])
    assert list(rows)[-3:] == ["only_clip", "only_convnext", "only_dino.v2"]
    (teacher,) = rows["only_convnext"].options["teachers"]
    assert teacher["image_size"] == 512 and teacher["checkpoint"].startswith("timm/convnext_xxlarge")
    assert rows["only_clip"].label == "HAWAII, clip alone"


def test_a_recipe_without_teachers_has_no_row_of_one():
    assert set(rows_of(None)) == set(ROWS) >= set(DEFAULT_ROWS)


def test_a_value_that_training_refuses_leaves_no_recipe(tmp_path, stages):
    stages["pretrain"]["max_steps"] = "many"
    with pytest.raises(ValueError, match="max_steps is 'many'"):
        write_recipe(tmp_path / "recipe.yaml", make_recipe(stages, ROWS["llava"], 0, tmp_path))
    assert not (tmp_path / "recipe.yaml").exists()


def test_what_is_written_is_read_as_the_same(tmp_path, stages):
    recipe = make_recipe(stages, ROWS["hawaii"], 0, tmp_path)
    write_recipe(tmp_path / "recipe.yaml", recipe)
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text()) == recipe
