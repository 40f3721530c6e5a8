"""With `--grid`, each row gets the settings with which it answers most validation questions."""

import json

import pytest
import yaml

from hawaii.ablation.rows import ROWS
from hawaii.ablation.tuning import SEED, points_of, read_grid
from hawaii.training.recipes.recipe import read_recipe


GRID = ("lambda_1=0.5 learning_rate=1e-3", "lambda_1=5 learning_rate=1e-3", "lambda_1=3 stages.finetune.seed=4")
WORDS = "--seeds 0 --rows llava hawaii --grid"


def options_of(world, row, stage="finetune"):
    recipe = yaml.safe_load((world.output / f"runs/{row}/seed-0/recipe.yaml").read_text())
    return {**recipe, **recipe["stages"][stage]}


def test_each_row_gets_its_best_point(world, run):
    assert run(WORDS, *GRID) == 0
    # The accuracy is highest at a lambda_1 of 2, and LLaVA has none: of equal points it gets the first.
    hawaii, llava = options_of(world, "hawaii"), options_of(world, "llava")
    assert hawaii["lambda_1"] == 3 and "learning_rate" not in hawaii
    assert "lambda_1" not in llava and llava["learning_rate"] == 1e-3
    report = json.loads((world.output / "tuning.json").read_text())
    assert report["rows"]["hawaii"]["chosen"] == {"lambda_1": 3, "stages.finetune.seed": 4}
    accuracies = [tried["accuracy"] for tried in report["rows"]["hawaii"]["tried"]]
    assert accuracies == pytest.approx([0.585, 0.57, 0.59])
    assert len(report["rows"]["llava"]["tried"]) == 2


def test_the_points_are_tried_with_another_seed_and_never_on_the_test_questions(world, run):
    assert run(WORDS, *GRID, "--jobs", "2") == 0
    calls = [(command, name) for command, name, *_ in world.calls()]
    tried = {name for _, name in calls if name.endswith(f"seed-{SEED}")}
    assert tried == {f"{row}/seed-{SEED}" for row in ("hawaii-0", "hawaii-1", "hawaii-2", "llava-0", "llava-1")}
    assert {name for command, name in calls if command == "evaluate"} == {"llava/seed-0", "hawaii/seed-0"}
    number = len(calls)
    assert run(WORDS, *GRID) == 0
    assert len(world.calls()) == number


def test_a_failed_point_ends_the_command_and_the_same_command_tries_it_again(world, run, capsys):
    world.settings["fail"] = [f"hawaii-1/seed-{SEED}"]
    assert run(WORDS, *GRID) == 2
    assert "1 of 5 runs failed, and the same command tries them again. hawaii-1" in capsys.readouterr().err
    assert not (world.output / "runs").exists()
    del world.settings["fail"]
    assert run(WORDS, *GRID) == 0
    assert options_of(world, "hawaii")["lambda_1"] == 3


def test_the_points_of_a_row_are_those_that_differ_for_it():
    recipe = read_recipe("easy_vqa", use_cpu=True)
    grid = read_grid(["lambda_1=1", "lambda_1=2", "lambda_1=2 learning_rate=1e-3", "stages.finetune.lambda_1=3"])
    assert points_of(recipe, ROWS["hawaii"], grid) == grid
    assert points_of(recipe, ROWS["llava"], grid) == [{}, {"learning_rate": 1e-3}]
    others = read_grid(["grid_matching=learned", "token_scoring=false", "lambda_2=3"])
    assert points_of(recipe, ROWS["radio"], others) == [{"grid_matching": "learned"}, {}]


def test_rows_can_be_added_and_keep_their_settings(world, run):
    assert run(WORDS, *GRID) == 0
    assert run("--seeds 0 --rows radio --grid", *GRID) == 0
    assert {row["name"] for row in world.read()["rows"]} == {"llava", "hawaii", "radio"}
    report = json.loads((world.output / "tuning.json").read_text())["rows"]
    assert report["radio"]["chosen"] == report["hawaii"]["chosen"] and set(report) == {"llava", "hawaii", "radio"}
    assert len(world.trained()) == 5 + 2 + 3 + 1


def test_a_row_with_one_setting_is_not_tuned(world, run):
    assert run(WORDS, "lambda_1=3") == 0
    assert world.trained() == ["llava/seed-0", "hawaii/seed-0"] and options_of(world, "hawaii")["lambda_1"] == 3


def test_models_of_the_tried_settings_are_removed(world, run):
    assert run(WORDS, *GRID) == 0
    assert not list((world.output / "tuning").rglob("hub")) and len(list((world.output / "runs").rglob("hub"))) == 2


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (["lambda_1"], "'lambda_1' is not an override; write key=value"),
        (["lambda_1=1", "lambda_1=1"], "--grid has the point 'lambda_1=1', which is empty or repeated"),
        ([" "], "--grid has the point ' ', which is empty"),
        (["lambda=1"], "there is no option 'lambda'. Did you mean"),
        (["max_steps.x=1"], "max_steps is 6 and has no fields"),
        (["stages.middle.lambda_1=1"], "has no stage for the option stages.middle.lambda_1"),
        (
            ["stages.finetune.token_scoring=false"],
            "would replace token_scoring of the row hawaii, which sets it itself",
        ),
    ],
)
def test_a_wrong_point_is_refused_before_any_training(world, run, capsys, points, message):
    assert run(WORDS, *points) == 2
    assert message in capsys.readouterr().err
    assert world.trained() == []


def test_a_recipe_without_validation_questions_is_refused(world, run, capsys):
    world.write_recipe(stages={"pretrain": {}, "finetune": {}})
    assert run(WORDS, *GRID) == 2
    assert "the recipe's last stage has none: add eval_data_path" in capsys.readouterr().err


def test_other_settings_than_those_of_the_folder_are_refused_before_a_row_is_tuned(world, run, capsys):
    assert run("--seeds 0 --rows llava") == 0
    number = len(world.calls())
    assert run(WORDS, *GRID, "--jobs", "1", "warmup_steps=1") == 2
    assert (
        "was started with other settings: stages.pretrain.warmup_steps is not given there and 1 here"
        in capsys.readouterr().err
    )
    assert len(world.calls()) == number
