"""docs/architecture.md: each how-to is carried out on a copy of the package, and the result is used."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import Dinov2Config, Dinov2Model

from hawaii.tests.documents import ROOT, blocks, read
from hawaii.tests.tiny.training import make_image, save_image_processor, write_recipe


DOCUMENT = read("docs/architecture.md")


def follow(title: str, package: Path) -> None:
    """Carries out the how-to with this title: writes its files and makes its edits."""
    _, _, section = DOCUMENT.partition(f"\n## {title}\n")
    section = section.partition("\n## ")[0]
    files, edits = blocks(section, "python"), blocks(section, "diff")
    assert files and edits
    for code in files:
        first, _, content = code.partition("\n")
        path = package / first.removeprefix("# ")
        assert path.parent.is_dir() and not path.exists()
        path.write_text(content, encoding="utf-8")
    for edit in edits:
        first, *lines = edit.splitlines()
        path = package / first.removeprefix("--- ")
        text = path.read_text(encoding="utf-8")
        place, changes = "", []
        for line in lines:
            if line[0] == "+":
                changes[-1][1].append(line[1:])
            else:
                place = line[1:]
                changes.append((place, [place] if line[0] == " " else []))
        for old, new in changes:
            assert text.count(f"{old}\n") == 1, f"{path} has {old!r} not exactly once"
            text = text.replace(f"{old}\n", "".join(f"{line}\n" for line in new))
        path.write_text(text, encoding="utf-8")


@pytest.fixture
def package(tmp_path):
    """A copy of the package without its tests, imported in place of the package by [`run`]."""
    folders = (
        "command_line",
        "configuration",
        "processing",
        "modeling_hawaii",
        "files",
        "metrics",
        "hub_cards",
        "training",
    )
    for folder in folders:
        shutil.copytree(ROOT / folder, tmp_path / "copy/hawaii" / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("__init__.py", "__main__.py"):
        shutil.copyfile(ROOT / name, tmp_path / "copy/hawaii" / name)
    return tmp_path / "copy/hawaii"


def run(package: Path, *command: str) -> str:
    """Runs python with the copy; gives what it prints."""
    environment = {**os.environ, "PYTHONPATH": str(package.parent), "HF_HUB_OFFLINE": "1"}
    finished = subprocess.run(
        [sys.executable, *command],
        cwd=package.parent.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return finished.stdout


def test_a_kind_of_teacher_is_added_in_one_file_and_one_list(package, tmp_path):
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=4, mlp_ratio=2
    )
    Dinov2Model(config).save_pretrained(tmp_path / "expert")
    save_image_processor(tmp_path / "expert", 16)
    program = """
import torch
from hawaii.training.teachers.config import TeacherConfig
from hawaii.training.teachers.loading import load_teacher
teacher = load_teacher(TeacherConfig("expert"))
print(type(teacher).__name__, teacher.grid)
images = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)
hidden_states = teacher.model(teacher.preprocess(images), output_hidden_states=True).hidden_states
print(teacher.grid[2] == 32 and torch.equal(teacher(images)[..., :16].flatten(1, 2), hidden_states[1][:, 1:]))
"""
    assert run(package, "-c", program).splitlines() == ["TransformersTeacher (4, 4, 16)", "False"]
    follow("Add a kind of teacher", package)
    assert run(package, "-c", program).splitlines() == ["Dinov2Teacher (4, 4, 32)", "True"]


def test_a_data_format_is_added_in_one_file_and_one_list(package, tmp_path):
    follow("Add a data format", package)
    (tmp_path / "data.tsv").write_text("a.png\twhat color is it ?\tred\nb.png\twhat is it ?\ta circle\n")
    for number, name in enumerate(("a.png", "b.png")):
        make_image(number).save(tmp_path / name)
    program = """
from hawaii.tests.tiny.models import make_processor
from hawaii.training.data.conversation_dataset import ConversationDataset
dataset = ConversationDataset("data.tsv", ".", make_processor())
print(len(dataset), dataset.records[1].messages[1].text, tuple(dataset[0]["pixel_values"].shape))
"""
    (package / "tests").symlink_to(ROOT / "tests")
    assert run(package, "-c", program) == "2 a circle (1, 3, 16, 16)\n"
    (tmp_path / "data.tsv").write_text("a.png\twhat color is it ?\n")
    program = "import sys; from hawaii.training.sources.readers import read_records; list(read_records('data.tsv'))"
    with pytest.raises(AssertionError, match="UserError: data.tsv, line 1: it has 2 cells; write image, question"):
        run(package, "-c", program)


@pytest.mark.slow
def test_an_objective_is_added_in_one_file_and_one_list(package, tmp_path, teacher_folders):
    follow("Add an objective", package)
    recipe = write_recipe(tmp_path, teacher_folders, objective="pooled", pooled_weight=0.5)
    out = run(package, "-m", "hawaii", "train", str(recipe), "--dry-run")
    assert "| projections " in out
    out = run(package, "-m", "hawaii", "train", str(recipe))
    assert f"{tmp_path / 'run' / 'hub'}" in out
    for stage in ("pretrain", "finetune"):
        lines = (tmp_path / "run" / stage / "log.jsonl").read_text().splitlines()
        entry = next(entry for entry in map(json.loads, lines) if "loss" in entry)
        assert entry["loss"] == pytest.approx(entry["text"] + 0.5 * entry["distillation"], rel=1e-2)
