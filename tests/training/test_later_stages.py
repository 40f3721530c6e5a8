"""A later stage may distill less than the one before it, or not at all, and then it runs no teachers."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hawaii.files.run_contents import LOG_FILE
from hawaii.tests.tiny.training import write_recipe
from hawaii.training import trainer
from hawaii.training.counting import recipes
from hawaii.training.counting.recipes import describe_recipe
from hawaii.training.train import train


def read_entries(folder: Path, stage: str) -> list[dict]:
    lines = (folder / "run" / stage / LOG_FILE).read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if "loss" in entry]


@pytest.fixture
def num_teachers(monkeypatch):
    """How many teachers ran in each micro-batch."""
    counts, original = [], trainer.teacher_features

    def count(teachers, batch):
        features = original(teachers, batch)
        counts.append(len(features))
        return features

    monkeypatch.setattr(trainer, "teacher_features", count)
    return counts


@pytest.mark.parametrize(
    ("options", "terms", "num_running"),
    [({"lambda_1": 0}, set(), 0), ({"distillation": ["coarse"]}, {"coarse"}, 2)],
)
def test_a_later_stage_continues_with_what_it_needs(
    tmp_path, teacher_folders, num_teachers, options, terms, num_running
):
    stages = {"pretrain": {"chat_template": "plain"}, "finetune": options}
    train(str(write_recipe(tmp_path, teacher_folders, stages=stages, max_steps=2, logging_steps=1)))
    assert num_teachers[:2] == [2, 2] and set(num_teachers[2:]) == {num_running}
    first, second = (read_entries(tmp_path, name) for name in stages)
    names = {"fine", "coarse"}
    assert all(names <= entry.keys() and 0 < entry["teacher_share"] < 1 for entry in first)
    assert all(names & entry.keys() == terms and ("teacher_share" in entry) == bool(terms) for entry in second)
    assert all(entry["load/teacher/vit"] >= 0 for entry in second)
    weights = [load_file(tmp_path / "run" / name / "model" / "model.safetensors") for name in stages]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_first_stage_without_distillation_runs_no_teachers_but_standardizes_the_targets(
    tmp_path, teacher_folders, num_teachers
):
    stages = {"pretrain": {"lambda_1": 0}, "finetune": {}}
    train(str(write_recipe(tmp_path, teacher_folders, stages=stages, max_steps=1)))
    assert num_teachers == [0, 2]


def test_a_dry_run_counts_no_teachers_in_a_stage_without_distillation(tmp_path, teacher_folders, monkeypatch):
    counted = []
    monkeypatch.setattr(recipes, "describe_costs", lambda costs: str(counted.extend(costs)))
    stages = {
        "pretrain": {},
        "coarse": {"distillation": ["coarse"]},
        "plain": {"distillation": ["coarse"], "lambda_1": 0},
    }
    describe_recipe(str(write_recipe(tmp_path, teacher_folders, stages=stages)))
    both, coarse, plain = counted
    assert both.teacher_flops == coarse.teacher_flops > 0 == plain.teacher_flops
    assert both.usual.flops > coarse.usual.flops
    assert not plain.teacher_sizes and plain.feature_bytes == 0
