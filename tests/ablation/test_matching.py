"""With `--match`, each row gets the steps that take the same time as those of the slowest row."""

import json
from types import SimpleNamespace

import pytest
import yaml

from hawaii.ablation.matching import NUM_STEPS, ROUNDS, _scale


WORDS = "--seeds 0 1 --rows llava hawaii"
STAGES = {
    "pretrain": {"chat_template": "plain", "max_steps": 300},
    "finetune": {"eval_data_path": "questions.json", "eval_strategy": "steps", "eval_steps": 50, "max_steps": 100},
}


def steps_of(world, row):
    stages = yaml.safe_load((world.output / f"runs/{row}/seed-1/recipe.yaml").read_text())["stages"]
    return {name: (options["max_steps"], options.get("eval_steps")) for name, options in stages.items()}


@pytest.mark.parametrize(
    ("match", "expected"),
    [
        # In the stages HAWAII takes 0.6 and 0.3 seconds a step, LLaVA 0.2; half of HAWAII's are the teachers'.
        ("steps", {"llava": {"pretrain": (300, None), "finetune": (100, 50)}}),
        ("seconds", {"llava": {"pretrain": (900, None), "finetune": (150, 75)}}),
        ("student_seconds", {"llava": {"pretrain": (450, None), "finetune": (100, 50)}}),
    ],
)
def test_the_slowest_row_has_the_recipes_steps_and_others_more(world, run, match, expected):
    world.write_recipe(stages=STAGES)
    assert run(f"{WORDS} --match {match}") == 0
    expected["hawaii"] = {"pretrain": (300, None), "finetune": (100, 50)}
    if match == "student_seconds":  # of 0.15 seconds, while LLaVA's step takes 0.2
        expected["hawaii"] = {"pretrain": (300, None), "finetune": (132, 66)}
    assert {row: steps_of(world, row) for row in expected} == expected


def test_rows_are_timed_in_turn_without_evaluation_and_only_once(world, run):
    world.write_recipe(stages=STAGES)
    assert run(f"{WORDS} --jobs 2 --match seconds") == 0
    timed = [f"{row}/seed-{number}" for number in ROUNDS for row in ("llava", "hawaii")]
    assert world.trained()[: len(timed)] == timed
    assert [command for command, *_ in world.calls()][: len(timed)] == ["train"] * len(timed)
    recipe = yaml.safe_load((world.output / "timing/runs/llava/seed-0/recipe.yaml").read_text())
    for options in recipe["stages"].values():
        options = {**recipe, **options}
        assert options["max_steps"] == NUM_STEPS and options["eval_strategy"] == "no"
    rows = json.loads((world.output / "matching.json").read_text())["rows"]
    assert rows["hawaii"]["pretrain"] == {"seconds": 0.6, "student_seconds": 0.3, "steps": 300}
    assert rows["llava"]["pretrain"] == {"seconds": 0.2, "student_seconds": 0.2, "steps": 900}
    number = len(world.calls())
    assert run(f"{WORDS} --match seconds") == 0
    assert len(world.calls()) == number


def test_a_row_that_is_added_gets_the_seconds_of_the_first_command(world, run):
    world.write_recipe(stages=STAGES)
    assert run("--seeds 0 1 --rows llava --match seconds") == 0
    assert steps_of(world, "llava")["pretrain"] == (300, None)
    assert run("--seeds 0 1 --rows hawaii --match seconds") == 0
    assert steps_of(world, "hawaii")["pretrain"] == (100, None)
    assert {row["name"] for row in world.read()["rows"]} == {"llava", "hawaii"}


@pytest.mark.parametrize(
    ("steps", "eval_steps", "expected"),
    [
        (1000, 10, {"max_steps": 1500, "eval_steps": 150}),  # ten evaluations at most
        (100, 30, {"max_steps": 150, "eval_steps": 50}),
        (500, 0.5, {"max_steps": 750}),  # a share of the steps
    ],
)
def test_the_last_evaluation_is_at_the_end(steps, eval_steps, expected):
    training = SimpleNamespace(max_steps=steps, eval_strategy="steps", eval_steps=eval_steps)
    assert _scale(training, 1.5) == expected
    assert _scale(training, 1) == {"max_steps": steps}


def test_other_steps_than_before_are_refused(world, run, capsys):
    world.write_recipe(stages=STAGES)
    assert run(f"{WORDS} --match seconds") == 0
    assert run(WORDS) == 2
    assert "stages.pretrain.max_steps is 900 there and 300 here" in capsys.readouterr().err


def test_a_recipe_without_steps_is_refused(world, run, capsys):
    world.write_recipe(max_steps=-1, num_train_epochs=1)
    assert run(f"{WORDS} --match seconds") == 2
    assert "stage pretrain has no max_steps: add it" in capsys.readouterr().err
    assert run(f"{WORDS} --match minutes") == 2
    assert "match" in capsys.readouterr().err and world.trained() == []


def test_a_row_with_its_own_steps_is_refused(world, run, capsys, tmp_path):
    world.write_recipe(stages=STAGES)
    rows = tmp_path / "rows.yaml"
    rows.write_text("short: {label: Short, row: hawaii, options: {stages.finetune.max_steps: 3}}")
    assert run("--seeds 0 --rows llava short --match seconds", "--more_rows", str(rows)) == 2
    assert "--match seconds sets max_steps, but the row short sets it itself" in capsys.readouterr().err
    assert world.trained() == []
