"""`hawaii ablate` executes the missing runs, refuses invalid arguments, and writes the table and curves."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from datasets import Dataset
from datasets import Image as ImageFeature

from hawaii.__main__ import main
from hawaii.ablation.folder import AblationFolder
from hawaii.ablation.run import Run
from hawaii.files.user_error import UserError
from hawaii.tests.tiny.training import make_image, make_record, write_recipe


def test_every_row_is_trained_from_one_seed_before_any_from_the_next(world, run):
    assert run("--seeds 0 1 --rows hawaii llava") == 0
    assert world.trained() == ["llava/seed-0", "hawaii/seed-0", "llava/seed-1", "hawaii/seed-1"]
    commands = [command for command, *_ in world.calls()]
    assert commands == ["train", "evaluate"] * 4


def test_tasks_and_folder_default_to_those_of_the_recipe(world, run, monkeypatch, capsys):
    recipe = str(world.folder / "recipe.yaml")
    monkeypatch.setenv("STAND_IN", json.dumps(world.settings))
    assert main(["ablate", recipe, "--seeds", "0", "--rows", "llava"]) == 2
    assert (
        f"{recipe} names no eval_tasks for the finished models: add them, or give --tasks" in capsys.readouterr().err
    )
    world.write_recipe(eval_tasks="easy_vqa")
    assert main(["ablate", recipe, "--seeds", "0", "--rows", "llava"]) == 0
    ablation = json.loads((world.folder / "data" / "ablation" / "ablation.json").read_text())
    assert ablation["tasks"] == ["easy_vqa"]
    # The tasks are not a setting of training: a started folder continues with any.
    world.write_recipe(eval_tasks="gqa")
    assert run("--seeds 0 --rows llava") == 0
    world.write_recipe(eval_tasks="pope")
    assert run("--seeds 0 --rows llava") == 0
    assert world.read()["tasks"] == ["easy_vqa"]
    assert "eval_tasks" not in (world.output / "runs/llava/seed-0/recipe.yaml").read_text()
    world.write_recipe(stages={"pretrain": {"eval_tasks": "easy_vqa"}, "finetune": {}})
    assert main(["ablate", recipe, "--seeds", "0"]) == 2
    assert "eval_tasks belongs to the complete run" in capsys.readouterr().err


def test_the_table_has_means_deviations_and_intervals(world, run, capsys):
    assert run("--seeds 0 1 2 --rows llava hawaii") == 0
    header, _, llava, hawaii, *notes = (world.output / "ablation.md").read_text().splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (header, llava, hawaii)]
    assert cells[0] == ["Methods", "color", "shape", "Avg.", "vs. LLaVA", "s/step", "teachers", "seeds"]
    assert cells[1][0] == "LLaVA" and cells[1][-4:] == ["-", "2", "0%", "3"]
    assert cells[2][-3:-1] == ["2", "50%"]
    rows = {row["name"]: row for row in world.read()["rows"]}
    average = rows["hawaii"]["columns"]["Avg."]
    found = average["against_baseline"]
    assert cells[2][0] == "+ CGKD (HAWAII)"
    assert cells[2][3] == f"**{average['mean']:.1f}** ± {average['deviation']:.1f}"
    assert cells[2][4] == f"{found['difference']:+.1f} [{found['low']:+.1f}, {found['high']:+.1f}]"
    assert found["low"] < found["difference"] < found["high"] and found["resampled"] == ["images", "seeds"]
    assert header in capsys.readouterr().out


def test_curves_count_from_the_start_of_the_first_stage(world, run, capsys):
    assert run("--seeds 0 1 --rows llava hawaii") == 0
    for row in world.read()["rows"]:
        assert row["curve"] == [
            {"steps": 10, "seconds": 20.0, "mean": pytest.approx(60), "lowest": pytest.approx(60)}
            | {"highest": pytest.approx(60), "num_seeds": 2}
        ]
    for name in ("accuracy_against_steps", "accuracy_against_seconds"):
        assert (world.output / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_without_evaluation_during_training_there_are_no_curves(world, run, capsys):
    world.write_recipe(stages={"pretrain": {}, "finetune": {}})
    assert run("--seeds 0 --rows llava") == 0
    assert "No learning curves: the recipe does not evaluate during training" in capsys.readouterr().out
    assert not list(world.output.glob("*.png"))


def test_large_files_of_a_finished_run_are_removed(world, run):
    folder = world.output / "runs" / "llava" / "seed-0"
    (folder / "evaluate-killed").mkdir(parents=True)
    assert run("--seeds 0 --rows llava") == 0
    names = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    assert {"hub", "run.json", "questions.json", "run.log", "recipe.yaml", "pretrain/log.jsonl"} <= names
    assert not [name for name in names if any(word in name for word in ("model", "checkpoint", "killed"))]


def test_finished_runs_are_skipped_and_the_table_stays_the_same(world, run):
    assert run("--seeds 0 1 --rows llava hawaii") == 0
    number, numbers = len(world.calls()), world.read()
    assert run("--seeds 0 1 --rows llava hawaii") == 0
    assert len(world.calls()) == number
    assert world.read() == numbers


def test_the_table_is_written_after_each_complete_seed(world, run, monkeypatch):
    written, write = [], AblationFolder.write_table

    def write_and_count(*args):
        ablation = write(*args)
        written.append([len(row["seeds"]) for row in ablation["rows"]])
        return ablation

    monkeypatch.setattr(AblationFolder, "write_table", write_and_count)
    assert run("--seeds 0 1 --rows llava hawaii") == 0
    assert written == [[1, 1], [2, 2], [2, 2]]


def test_rows_and_seeds_can_be_added_later(world, run):
    assert run("--seeds 0 --rows llava") == 0
    assert run("--seeds 1 --rows radio") == 0
    rows = {row["name"]: row for row in world.read()["rows"]}
    assert world.trained() == ["llava/seed-0", "radio/seed-1"]
    assert (rows["llava"]["missing_seeds"], rows["radio"]["missing_seeds"]) == ([1], [0])
    assert rows["radio"]["columns"]["Avg."]["against_baseline"] is None  # no seed in common
    table = (world.output / "ablation.md").read_text()
    assert "1 of 2 |" in table and "Missing: LLaVA with seed 1; RADIO with seed 0." in table


def test_each_teacher_alone_is_a_row(world, run):
    assert run("--seeds 0 --rows llava only_vit") == 0
    recipe = yaml.safe_load((world.output / "runs/only_vit/seed-0/recipe.yaml").read_text())
    assert [teacher["checkpoint"] for teacher in recipe["teachers"]] == ["owner/vit"]


def test_a_failed_run_is_named_and_does_not_stop_the_others(world, run, capsys):
    world.settings["fail"] = ["hawaii/seed-0", "radio/seed-0", "radio/seed-1"]
    assert run("--seeds 0 1 --rows llava hawaii radio") == 2
    assert len(world.trained()) == 6
    error = capsys.readouterr().err
    assert (
        "hawaii ablate: 3 of 6 runs failed, and the same command tries them again. hawaii, seed 0: Training" in error
    )
    assert "run.log: hawaii train: the dog ate it.;" in error
    rows = {row["name"]: row for row in world.read()["rows"]}
    assert rows["hawaii"]["missing_seeds"] == [0] and rows["radio"]["missing_seeds"] == [0, 1]
    lines = (world.output / "ablation.md").read_text().splitlines()
    assert any(line.startswith("| RADIO") and line.endswith("| 0 of 2 |") for line in lines)

    world.settings["fail"] = []
    assert run("--seeds 0 1 --rows llava hawaii radio") == 0
    assert world.trained()[6:] == ["hawaii/seed-0", "radio/seed-0", "radio/seed-1"]
    assert all(not row["missing_seeds"] for row in world.read()["rows"])


def test_a_failed_early_table_does_not_stop_the_runs(world, run, monkeypatch, capsys):
    errors, write = [OSError(28, "No space left on device", "ablation.json")], AblationFolder.write_table

    def write_or_fail(*args):
        if errors:
            raise errors.pop()
        return write(*args)

    monkeypatch.setattr(AblationFolder, "write_table", write_or_fail)
    assert run("--seeds 0 1 --rows llava hawaii") == 0
    output = capsys.readouterr().out
    assert "hawaii, seed 0: finished, but afterwards: [Errno 28] No space left on device" in output
    assert all(not row["missing_seeds"] for row in world.read()["rows"])


def test_a_failed_final_table_is_reported_at_the_end(world, run, monkeypatch, capsys):
    def fail(*args):
        raise OSError(28, "No space left on device", "ablation.json")

    monkeypatch.setattr(AblationFolder, "write_table", fail)
    assert run("--seeds 0 1 --rows llava hawaii") == 2
    assert len(world.trained()) == 4
    full = "The table and the curves could not all be written: [Errno 28] No space left on device: 'ablation.json'"
    assert capsys.readouterr().err == f"hawaii ablate: {full}\n"
    world.settings["fail"] = ["radio/seed-0"]
    assert run("--seeds 0 --rows llava radio") == 2
    error = capsys.readouterr().err
    assert error.startswith("hawaii ablate: 1 of 2 runs failed") and error.endswith(f"dog ate it. {full}\n")


def test_an_invalid_table_does_not_hide_a_failed_run(world, run, monkeypatch, capsys):
    def fail(*args):
        raise UserError("runs/radio/seed-0/run.json has a score that is not a number")

    monkeypatch.setattr(AblationFolder, "write_table", fail)
    world.settings["fail"] = ["llava/seed-0"]
    assert run("--seeds 0 --rows llava") == 2
    error = capsys.readouterr().err
    assert error.startswith("hawaii ablate: 1 of 1 runs failed") and "a score that is not a number" in error


def test_a_run_whose_folder_cannot_be_created_does_not_stop_the_others(world, run, capsys):
    (world.output / "runs").mkdir(parents=True)
    (world.output / "runs" / "hawaii").touch()
    assert run("--seeds 0 --rows llava hawaii radio") == 2
    assert world.trained() == ["llava/seed-0", "radio/seed-0"]
    assert "1 of 3 runs failed, and the same command tries them again. hawaii, seed 0: [" in capsys.readouterr().err


def test_a_finished_run_that_cannot_be_cleaned_or_printed_does_not_stop_the_others(world, run, monkeypatch, capsys):
    assert run("--seeds 0 --rows llava") == 0

    def fail(*args):
        raise PermissionError(13, "Permission denied", "checkpoint-4")

    with monkeypatch.context() as patch:
        patch.setattr(Run, "remove_large_files", lambda run: fail() if run.row == "llava" else None)
        assert run("--seeds 0 --rows llava radio") == 0
    monkeypatch.setattr(Run, "summary", fail)
    assert run("--seeds 0 --rows llava hawaii fine") == 0
    assert world.trained() == ["llava/seed-0", "radio/seed-0", "fine/seed-0", "hawaii/seed-0"]
    output = capsys.readouterr().out
    for name in ("llava", "hawaii", "fine"):
        assert f"{name}, seed 0: finished, but afterwards: [Errno 13] Permission denied" in output
    assert output.count("| + CGKD (HAWAII) ") == 1  # in the last table


def test_without_finished_runs_there_is_no_table(world, run):
    world.settings["fail"] = ["llava/seed-0"]
    assert run("--seeds 0 --rows llava") == 2
    assert not (world.output / "ablation.md").exists()


def test_a_trained_run_is_only_evaluated(world, run):
    assert run("--seeds 0 --rows llava") == 0
    (world.output / "runs/llava/seed-0/run.json").unlink()
    assert run("--seeds 0 --rows llava") == 0
    assert [command for command, *_ in world.calls()] == ["train", "evaluate", "evaluate"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--rows llava hawai", "There is no row 'hawai': with this recipe's teachers there are llava, fine, "),
        ("--rows llava only_sam", "There is no row 'only_sam'"),
        ("--rows hawaii", "The baseline 'llava' is not one of the rows"),
        ("--rows llava --baseline lava", "The baseline 'lava' is not one of the rows"),
        ("--seeds 0 1 0", "--seeds names 0 twice"),
        ("--seeds max_steps=3", "--seeds names no seed"),
        ("--jobs 0", "--jobs is 0"),
        ("--tasks gqa,gqa", "The tasks list gqa twice"),
        ("--tasks easy_vqa,mme --limit 5", "--limit 5 splits a pair"),
        ("--batch_size 0", "--batch_size is 0"),
        (
            "vision_config.num_general_adapters=0",
            "The recipe has vision_config.num_general_adapters of 0, but the rows decide this",
        ),
        (
            "vision_config.lora_rank=8 text_config= tokenizer= stages.pretrain.chat_template= "
            "stages.finetune.eval_data_path= stages.finetune.eval_strategy=no",
            "The recipe names no language model, so its models cannot answer questions",
        ),
        ("--data_file typo.parquet", "there is no typo.parquet"),
        ("max_steps=many", "max_steps is 'many'"),
        ("max_step=3", "Did you mean max_steps"),
        ("--data_folder nowhere --tasks gqa", "nowhere/gqa has no data"),
    ],
)
def test_invalid_arguments_are_refused_before_anything_is_written(world, run, capsys, words, message):
    assert run(words) == 2
    assert message in capsys.readouterr().err
    assert not world.output.exists()


def test_an_unknown_task_is_refused_before_anything_is_written(world, run, monkeypatch, capsys):
    # The list of lmms-eval takes seconds to read.
    known = SimpleNamespace(all_tasks=["gqa", "chartqa"])
    monkeypatch.setattr("hawaii.evaluation.lmms.worker.TaskManager", lambda: known)
    assert run("--tasks easy_vqa,gqqa") == 2
    assert "lmms-eval has no task gqqa; `python -m lmms_eval --tasks list` lists" in capsys.readouterr().err
    assert not world.output.exists()


def test_simultaneous_runs_share_the_cores(world, run, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("hawaii.ablation.local.count_cores", lambda: 6)
    assert run("--seeds 0 --rows llava hawaii --jobs 2") == 0
    assert {environment["OMP_NUM_THREADS"] for *_, environment in world.calls()} == {"3"}
    assert sorted(world.trained()) == ["hawaii/seed-0", "llava/seed-0"]


def test_simultaneous_runs_use_different_devices(world, run, monkeypatch):
    monkeypatch.setattr("hawaii.ablation.local.visible_devices", lambda environment: ["3", "5"])
    assert run("--seeds 0 --rows llava hawaii --jobs 2") == 0
    # Each run trains and evaluates on one device, whichever thread takes its device first.
    devices = {(name, environment["CUDA_VISIBLE_DEVICES"]) for _, name, _, environment in world.calls()}
    assert sorted(name for name, _ in devices) == ["hawaii/seed-0", "llava/seed-0"]
    assert sorted(device for _, device in devices) == ["3", "5"]


def test_the_launcher_starts_the_training_but_not_the_evaluation(world, run):
    assert run("--seeds 0 --rows llava", "--launcher", f"env LAUNCHED='by hand' {sys.executable}") == 0
    assert [environment["LAUNCHED"] for *_, environment in world.calls()] == ["by hand", None]


def test_a_launcher_that_does_not_exist_fails_its_runs(world, run, capsys):
    assert run("--seeds 0 --rows llava", "--launcher", "/no/such/program") == 2
    assert "1 of 1 runs failed" in capsys.readouterr().err


QUESTIONS = [("what color is the shape ?", "red", "color"), ("is there a circle in the image ?", "yes", "shape")]


def write_questions(folder: Path) -> None:
    """Writes easy-VQA's test with two questions on each of six images, and two questions for the training."""
    rows = [
        {"question_id": 2 * image + number, "question": question, "answer": answer, "question_type": question_type}
        | {"image_id": str(image), "image": make_image(image)}
        for image in range(6)
        for number, (question, answer, question_type) in enumerate(QUESTIONS)
    ]
    (folder / "run" / "data").mkdir(parents=True)
    questions = Dataset.from_list(rows).cast_column("image", ImageFeature())
    questions.to_parquet(folder / "run" / "data" / "test.parquet")
    (folder / "validation.json").write_text(json.dumps([make_record(0), make_record(1)]))


@pytest.mark.slow
def test_real_runs_produce_a_table_and_curves(tmp_path, teacher_folders, capsys):
    write_questions(tmp_path)
    evaluated = {"eval_data_path": str(tmp_path / "validation.json"), "eval_strategy": "steps", "eval_steps": 2}
    stages = {"pretrain": {"chat_template": "plain"}, "finetune": evaluated}
    recipe = write_recipe(tmp_path, teacher_folders, max_steps=4, stages=stages)
    output = tmp_path / "ablation"
    words = ["ablate", str(recipe), "--tasks", "easy_vqa", "--output_dir", str(output), "--jobs", "2", "--seeds", "0"]
    assert main([*words, "--rows", "llava", "hawaii", "save_steps=4"]) == 0
    ablation = json.loads((output / "ablation.json").read_text())
    assert [column["label"] for column in ablation["columns"]] == ["color", "shape", "Avg."]
    for row in ablation["rows"]:
        folder = output / "runs" / row["name"] / "seed-0"
        results = json.loads((folder / "results.json").read_text())
        assert row["columns"]["Avg."]["mean"] == pytest.approx(100 * results["accuracy"])
        assert [point["steps"] for point in row["curve"]] == [6, 8]
        assert row["steps"]["mean"] == 8 and row["seconds_per_step"]["mean"] > 0
        questions = json.loads((folder / "questions.json").read_text())["easy_vqa"]
        assert questions["groups"] == [str(image) for image in range(6) for _ in QUESTIONS]
        assert questions["types"] == ["color", "shape"] * 6
    difference = ablation["rows"][1]["columns"]["Avg."]["against_baseline"]
    assert difference["resampled"] == ["images"]
    assert difference["low"] <= difference["difference"] <= difference["high"]
    assert (output / "accuracy_against_seconds.png").is_file()
    assert "| LLaVA " in capsys.readouterr().out
    # The baseline has no adapters and no teachers.
    vision = json.loads((output / "runs/llava/seed-0/hub/config.json").read_text())["vision_config"]
    assert vision["num_teacher_adapters"] == vision["num_general_adapters"] == 0
