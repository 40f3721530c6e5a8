"""docs/training.md: its recipe is one, and its code gives what it says."""

import json
import subprocess
import sys

import pytest
import yaml

from hawaii.__main__ import main
from hawaii.files.user_error import Stopped
from hawaii.tests.documents import ROOT, blocks, read
from hawaii.tests.tiny.training import write_recipe
from hawaii.training.recipes.recipe import read_recipe
from hawaii.training.train import train


DOCUMENT = read("docs/training.md")


def test_what_it_adds_to_a_recipe_asks_while_that_stage_trains_and_no_other(tmp_path):
    (block,) = blocks(DOCUMENT, "yaml")
    recipe = {"extends": str(ROOT / "training" / "recipes" / "easy_vqa.yaml"), **yaml.safe_load(block)}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    stages = read_recipe(tmp_path / "recipe.yaml", use_cpu=True).stages
    paths = [stage.data.eval_data_path for stage in stages.values()]
    assert paths == [None, "runs/easy_vqa/data/validation.json"]
    assert [stage.training.eval_strategy for stage in stages.values()] == ["no", "steps"]
    assert stages["finetune"].training.eval_steps == 200


def test_the_metric_forgives_case_and_a_period_and_nothing_else(tmp_path):
    (block,) = blocks(DOCUMENT, "python")
    options = {"cwd": ROOT, "capture_output": True, "text": True, "timeout": 120}
    ran = subprocess.run([sys.executable, "-c", block], **options)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "{'accuracy': 0.5}"


def test_its_commands_check_a_recipe(monkeypatch):
    calls = []
    monkeypatch.setattr("hawaii.training.checking.check.check", lambda **options: calls.append(options))
    (block,) = [block for block in blocks(DOCUMENT, "bash") if "hawaii check easy_vqa" in block]
    assert [main(line.split()[1:]) for line in block.splitlines()] == [0, 0]
    assert calls[1] == {"recipe": "easy_vqa", "overrides": ["bad_records=skip"], "num_processes": 8}


@pytest.mark.parametrize("recipe", ["easy_vqa", "emoji_vqa"])
def test_the_recipes_of_both_data_sets_start_from_a_language_model_that_reads(recipe):
    for stage in read_recipe(recipe, use_cpu=True).stages.values():
        assert stage.model.language_model.endswith("/language_model")
        assert stage.model.text_config is None and stage.model.tokenizer is None


def test_the_exit_status_of_a_stopped_run_is_the_documented_one(capsys):
    assert f"| {Stopped.STATUS} | a signal stopped it" in DOCUMENT
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert f"exit with status {Stopped.STATUS}" in " ".join(capsys.readouterr().out.split())


def test_the_commands_of_costs_and_monitoring_run(tmp_path, teacher_folders, capsys):
    """Each with a tiny recipe in place of its own."""
    recipe = write_recipe(tmp_path, teacher_folders, max_steps=2)
    section = DOCUMENT.partition("## Costs before training")[2].partition("## Images of the data")[0]
    lines = [line.split() for block in blocks(section, "bash") for line in block.splitlines()]
    assert [words[1] for words in lines] == ["train", "train", "plot"]
    train(str(recipe))
    for words in lines:
        words[2] = str(recipe if words[1] == "train" else tmp_path / "run")
        assert main(words[1:]) == 0, words
    printed = capsys.readouterr().out
    assert "Memory of each device, one H100, in GiB" in printed
    assert "Memory of each device, 8 x H100 with fsdp2, in GiB" in printed
    for stage in ("pretrain", "finetune"):
        assert (tmp_path / "run" / f"training_{stage}.png").is_file()
    entry = json.loads((tmp_path / "run" / "finetune" / "log.jsonl").read_text().splitlines()[0])
    assert {"time", "samples_per_second", "tokens_per_second", "flops_per_second"} <= set(entry)
    assert {"load/teacher/vit", "load/general/0", "load_entropy/teacher", "variance/student"} <= set(entry)
