"""The runs of one folder share a recipe, an evaluation and files; changes are refused."""

import shutil

import pytest


@pytest.mark.parametrize(
    ("words", "difference"),
    [
        ("max_steps=7", "stages.pretrain.max_steps is 6 there and 7 here"),
        ("--limit 5", "evaluation.limit is not given there and 5 here"),
    ],
)
def test_another_recipe_or_evaluation_is_refused(world, run, capsys, words, difference):
    assert run("--seeds 0 --rows llava") == 0
    assert run(f"--seeds 0 1 --rows llava {words}") == 2
    error = capsys.readouterr().err
    assert f"was started with other settings: {difference}. Give another --output_dir, or remove this folder" in error
    assert world.trained() == ["llava/seed-0"]


def test_changed_files_are_refused_unless_all_runs_are_finished(world, run, capsys):
    questions = world.folder / "data" / "data" / "test.parquet"
    assert run("--seeds 0 --rows llava") == 0
    questions.write_bytes(b"others")
    assert run("--seeds 0 1 --rows llava") == 2
    assert (
        f"{world.output} was started with other files: {questions} changed since. Give another --output_dir, or remove"
        in capsys.readouterr().err
    )
    assert run("--seeds 0 --rows llava") == 0
    # The command without new runs did not record the changed file.
    assert run("--seeds 1 --rows llava") == 2
    assert world.trained() == ["llava/seed-0"]


def test_files_that_changed_before_the_first_run_are_accepted(world, run):
    assert run("--seeds 0 --rows llava") == 0
    shutil.rmtree(world.output / "runs")
    (world.folder / "data" / "data" / "test.parquet").write_bytes(b"others")
    assert run("--seeds 0 --rows llava") == 0


def test_a_run_started_with_another_recipe_is_refused(world, run, capsys):
    assert run("--seeds 0 --rows llava") == 0
    path = world.output / "runs/llava/seed-0/recipe.yaml"
    path.write_text(path.read_text().replace("objective: llava", "objective: radio"))
    assert run("--seeds 0 --rows llava") == 2
    assert (
        "started with another recipe: stages.pretrain.objective is 'radio' there and 'llava' here"
        in capsys.readouterr().err
    )


def test_a_folder_can_be_moved(world, run):
    assert run("--seeds 0 --rows llava") == 0
    shutil.move(world.output, world.folder / "elsewhere")
    world.output = world.folder / "elsewhere"
    assert run("--seeds 0 --rows llava") == 0
    assert world.trained() == ["llava/seed-0"]


def test_an_unfinished_run_continues_in_the_moved_folder(world, run):
    world.settings["fail"] = ["llava/seed-0"]
    assert run("--seeds 0 --rows llava") == 2
    before, world.output = world.output, world.folder / "elsewhere"
    shutil.move(before, world.output)
    world.settings["fail"] = []
    assert run("--seeds 0 --rows llava") == 0
    assert not before.exists()


def test_a_copy_of_a_run_in_the_folder_is_ignored(world, run):
    assert run("--seeds 0 --rows llava") == 0
    folder = world.output / "runs/llava/seed-0"
    shutil.copytree(folder, folder.with_name("seed-0.old"))
    assert run("--seeds 0 --rows llava") == 0
    assert world.read()["seeds"] == [0]
