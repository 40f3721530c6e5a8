"""Tests of the commands in docs/figures.md."""

import json
import shlex
from inspect import signature

import pytest
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image

from hawaii.__main__ import main
from hawaii.figures.routing import routing_figure
from hawaii.tests.documents import blocks, read
from hawaii.tests.evaluation.stand_ins import BUILDERS, any_answers, save_stand_ins
from hawaii.tests.tiny.encoders import write_encoder_recipe
from hawaii.tests.tiny.models import save_hub_folder
from hawaii.tests.tiny.students import save_clip_folder
from hawaii.tests.tiny.training import make_image, save_stage
from hawaii.training.recipes.recipe import read_recipe
from hawaii.training.train import train


DOCUMENT = read("docs/figures.md")
COMMANDS = [line for block in blocks(DOCUMENT, "bash") for line in block.splitlines()]


@pytest.fixture(scope="module")
def world(tmp_path_factory, teacher_folders):
    """The files in the commands: finished runs with their data, a CLIP, and the data of the benchmarks."""
    folder = tmp_path_factory.mktemp("world")
    complete = folder / "runs" / "emoji_vqa"
    save_stage(complete / "finetune" / "model", teacher_folders)
    (complete / "train_results.json").write_text(json.dumps({"stages": {"pretrain": {}, "finetune": {}}}))
    (complete / "data" / "images" / "test").mkdir(parents=True)
    make_image(0).save(complete / "data" / "images" / "test" / "fluent-emoji-flat-0.png")
    run = folder / "runs" / "easy_vqa"
    save_hub_folder(run / "hub")
    for split in ("train", "test"):
        (run / "data" / "images" / split).mkdir(parents=True)
        make_image(0).save(run / "data" / "images" / split / "0.png")
    row = {"question": "what shape ?", "answer": "circle", "question_type": "shape", "image": make_image(0)}
    Dataset.from_list([row]).cast_column("image", ImageFeature()).to_parquet(run / "data" / "test.parquet")
    clip = save_clip_folder(folder / "hub" / "clip")
    assert main(["convert", "clip", clip, str(folder / "hub" / "mine")]) == 0
    changes = {"vision_tower": clip, "vision_config": {}, "max_steps": 1, "stages": {"distill": {}}}
    train(str(write_encoder_recipe(folder, teacher_folders, output_dir=str(folder / "runs" / "mine"), **changes)))
    for name in ("photo.jpg", "drawing.png"):
        make_image(1).save(folder / name)
    save_stand_ins(folder / "data" / "benchmarks", {task: any_answers(task) for task in BUILDERS})
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command.split()[:5]))
def test_the_command_writes_its_figure_and_numbers(command, world, monkeypatch):
    monkeypatch.chdir(world)
    program, *words = shlex.split(command)
    assert (program, main(words)) == ("hawaii", 0)
    path = world / words[words.index("--output_dir") + 1] / words[1]
    with Image.open(path.with_suffix(".png")) as figure:
        assert figure.size[0] <= 7.2 * 300 + 1
    results = json.loads(path.with_suffix(".json").read_text())
    if words[1] == "importance":
        (row,) = results["images"]
        assert row.keys() >= {"teachers", "instruction", "importance"}
    elif words[1] == "attention":
        assert all(row.keys() == {"image", "start", "student"} for row in results["images"])
    else:
        named = words[words.index("--tasks") + 1].split(",") if "--tasks" in words else ["train", "test"]
        assert list(results["benchmarks"]) == named


def test_the_recipe_of_the_run_with_importance_scores_tokens():
    (run,) = (shlex.split(command)[3] for command in COMMANDS if " importance " in command)
    options = read_recipe(run.partition("/")[2], use_cpu=True).stages["finetune"].options
    assert options.token_scoring and "fine" in options.distillation


def test_the_document_states_the_default_limit():
    limit = signature(routing_figure).parameters["limit"].default
    assert f"At most {limit} evenly spaced questions or images of each are used" in DOCUMENT
