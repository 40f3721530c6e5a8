"""What the README says to run is run."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from hawaii.tests.documents import ROOT, blocks, links, read


README = read("README.md")


def test_the_lines_that_ask_a_checkpoint_run_in_a_process_without_the_package(hub_folder, tmp_path):
    (code,) = blocks(README, "python")
    (tmp_path / "runs" / "easy_vqa").mkdir(parents=True)
    (tmp_path / "runs" / "easy_vqa" / "hub").symlink_to(hub_folder)
    Image.new("RGB", (20, 30), "red").save(tmp_path / "image.png")
    code = "import sys\nsys.modules['hawaii'] = None\n" + code
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


def test_each_make_target_of_the_readme_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^make ([\w.]+)", "".join(blocks(README, "bash")), flags=re.MULTILINE)
    assert targets == ["demo", "test", ".venv"]
    assert all(re.search(rf"^{re.escape(target)}:", makefile, flags=re.MULTILINE) for target in targets)


# Few steps of each, and where the numbers of a whole run would be asked for.
SHORTENED = {
    "hawaii data": "--expert_steps 2",
    "accelerate launch": "stages.pretrain.max_steps=2 stages.finetune.max_steps=2",
    "hawaii evaluate": "--limit 4",
}


@pytest.mark.slow
def test_the_commands_that_train_run_one_after_the_other(tmp_path):
    (tmp_path / "training").symlink_to(ROOT / "training")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    commands = blocks(README, "bash")[1].splitlines()[1:]
    assert [" ".join(command.split()[:2]) for command in commands] == list(SHORTENED)
    for command, flags in zip(commands, SHORTENED.values()):
        shell = {"shell": True, "cwd": tmp_path, "env": environment, "timeout": 600}
        finished = subprocess.run(f"{command} {flags}", capture_output=True, text=True, **shell)
        assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    run = tmp_path / "runs" / "easy_vqa"
    results, trained = (json.loads((run / name).read_text()) for name in ("results.json", "train_results.json"))
    # Not compared with zero: a fast machine may round the seconds of two steps to it.
    assert results["num_questions"] == 4 and results["train_seconds"] == trained["train_seconds"]


@pytest.mark.timm
def test_the_commands_that_count_the_papers_recipe_run():
    installing, *commands = [line.split() for line in blocks(README, "bash")[2].splitlines()]
    assert installing == ["pip", "install", "timm", "torchvision"]  # as this environment has them
    for command, said in zip(commands, ("| convnext | 843.4 M |", "| language_model | 6,738,939,904 |"), strict=True):
        command = [sys.executable, "-m", *command]
        finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert said in finished.stdout, finished.stderr


def test_every_file_that_the_readme_names_is_there():
    found = links(README)
    assert found and all((ROOT / link).is_file() for link in found)
