"""What belongs together in one folder, and what is refused there."""

import shutil

import pytest


@pytest.mark.parametrize(
    ("words", "difference"),
    [
        ("max_steps=7", "stages.pretrain.max_steps is 6 there and 7 here"),
        ("--limit 5", "evaluation.limit is not given there and 5 here"),
    ],
)
def test_another_recipe_or_evaluation_in_the_same_place_is_refused(world, run, capsys, words, difference):
    assert run("--seeds 0 --rows llava") == 0
    assert run(f"--seeds 0 1 --rows llava {words}") == 2
    said = capsys.readouterr().err
    assert f"was started with other settings: {difference}. Give another --output_dir, or remove this folder" in said
    assert world.trained() == ["llava/seed-0"]


def test_files_that_changed_under_an_ablation_are_refused_until_only_its_table_is_asked_for(world, run, capsys):
    questions = world.folder / "data" / "data" / "test.parquet"
    assert run("--seeds 0 --rows llava") == 0
    questions.write_bytes(b"others")
    assert run("--seeds 0 1 --rows llava") == 2
    assert (
        f"{world.output} was started with other files: {questions} changed since. Give another --output_dir, or remove"
        in capsys.readouterr().err
    )
    assert run("--seeds 0 --rows llava") == 0
    # That told the new files from the old ones still.
    assert run("--seeds 1 --rows llava") == 2
    assert world.trained() == ["llava/seed-0"]


def test_files_that_changed_before_anything_was_begun_are_taken(world, run):
    assert run("--seeds 0 --rows llava") == 0
    shutil.rmtree(world.output / "runs")
    (world.folder / "data" / "data" / "test.parquet").write_bytes(b"others")
    assert run("--seeds 0 --rows llava") == 0


def test_a_run_that_was_begun_with_another_recipe_is_refused(world, run, capsys):
    assert run("--seeds 0 --rows llava") == 0
    path = world.output / "runs/llava/seed-0/recipe.yaml"
    path.write_text(path.read_text().replace("objective: llava", "objective: radio"))
    assert run("--seeds 0 --rows llava") == 2
    assert (
        "started with another recipe: stages.pretrain.objective is 'radio' there and 'llava' here"
        in capsys.readouterr().err
    )


def test_a_folder_may_be_moved(world, run):
    assert run("--seeds 0 --rows llava") == 0
    shutil.move(world.output, world.folder / "elsewhere")
    world.output = world.folder / "elsewhere"
    assert run("--seeds 0 --rows llava") == 0
    assert world.trained() == ["llava/seed-0"]


def test_an_unfinished_run_goes_on_where_its_folder_was_moved_to(world, run):
    world.settings["fail"] = ["llava/seed-0"]
    assert run("--seeds 0 --rows llava") == 2
    before, world.output = world.output, world.folder / "elsewhere"
    shutil.move(before, world.output)
    world.settings["fail"] = []
    assert run("--seeds 0 --rows llava") == 0
    assert not before.exists()


def test_a_copy_of_a_run_that_is_kept_beside_it_is_passed_over(world, run):
    assert run("--seeds 0 --rows llava") == 0
    folder = world.output / "runs/llava/seed-0"
    shutil.copytree(folder, folder.with_name("seed-0.old"))
    assert run("--seeds 0 --rows llava") == 0
    assert world.read()["seeds"] == [0]
