"""What the README says to run is run."""

import configparser
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from hawaii.__main__ import main
from hawaii.tests.documents import ROOT, blocks, links, read
from hawaii.tests.test_imports import ARROWS


README = read("README.md")
INSTALL, FROM_A_CLONE, TRAIN, COUNT, LMMS_EVAL, _ = blocks(README, "bash")


def test_the_lines_that_ask_a_checkpoint_run_in_a_process_without_the_package(hub_folder, tmp_path):
    code, _ = blocks(README, "python")  # tests/docs/test_publishing.py runs the other one
    (tmp_path / "runs" / "easy_vqa").mkdir(parents=True)
    (tmp_path / "runs" / "easy_vqa" / "hub").symlink_to(hub_folder)
    Image.new("RGB", (20, 30), "red").save(tmp_path / "image.png")
    code = "import sys\nsys.modules['hawaii'] = None\n" + code
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


def test_the_installed_distribution_and_its_extras_are_those_of_setup_cfg():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert INSTALL.split() == ["pip", "install", setup["metadata"]["name"]]
    extras = re.findall(r"^\| `hawaii-vlm\[(\w+)\]` \|", README, flags=re.MULTILINE)
    assert set(extras) == set(setup["options.extras_require"]) - {"dev"}


def test_the_table_of_commands_has_every_command(capsys):
    names = re.findall(r"^\| `hawaii (\w+)` \|", README, flags=re.MULTILINE)
    with pytest.raises(SystemExit):
        main(["--help"])
    listed = re.findall(r"^    (\w+)  ", capsys.readouterr().out, flags=re.MULTILINE)
    assert names and sorted(names) == sorted(listed)


def test_the_tree_shows_every_folder():
    (tree,) = blocks(README, "text")
    folders = {name.partition("/")[0] for name in ARROWS} | {"benchmarks", "docs"}
    assert set(re.findall(r"^(\w+)/", tree, flags=re.MULTILINE)) == folders


def test_each_make_target_of_the_readme_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^make ([\w.]+)", FROM_A_CLONE + TRAIN, flags=re.MULTILINE)
    assert targets == ["demo", "test", ".venv"]
    assert all(re.search(rf"^{re.escape(target)}:", makefile, flags=re.MULTILINE) for target in targets)


# Few steps of each, and where the numbers of a whole run would be asked for.
SHORTENED = {
    "hawaii data": "--expert_steps 2",
    "hawaii train": "stages.pretrain.max_steps=2 stages.finetune.max_steps=2",
    "hawaii evaluate": "--limit 4",
}


@pytest.mark.slow
def test_the_commands_that_train_run_one_after_the_other(tmp_path):
    (tmp_path / "evaluation").symlink_to(ROOT / "evaluation")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    commands = TRAIN.splitlines()[1:]
    assert [" ".join(command.split()[:2]) for command in commands] == list(SHORTENED)
    for command, flags in zip(commands, SHORTENED.values()):
        shell = {"shell": True, "cwd": tmp_path, "env": environment, "timeout": 600}
        finished = subprocess.run(f"{command} {flags}", capture_output=True, text=True, **shell)
        assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    finished = subprocess.run(f"{LMMS_EVAL.rstrip()} --limit 4", capture_output=True, text=True, **shell)
    run = tmp_path / "runs" / "easy_vqa"
    (scores,) = (run / "lmms_eval").rglob("*_results.json")  # lmms-eval exits with 0 after an error, too
    assert "accuracy,none" in json.loads(scores.read_text())["results"]["easy_vqa"], finished.stderr[-3000:]
    results, trained = (json.loads((run / name).read_text()) for name in ("results.json", "train_results.json"))
    # Not compared with zero: a fast machine may round the seconds of two steps to it.
    assert results["num_questions"] == 4 and results["train_seconds"] == trained["train_seconds"]


@pytest.mark.timm
def test_the_commands_that_count_the_papers_recipe_run():
    installing, *commands = [line.split() for line in COUNT.splitlines()]
    assert installing == ["pip", "install", "timm", "torchvision"]  # as this environment has them
    for command, said in zip(commands, ("| convnext | 843.4 M |", "| language_model | 6,738,939,904 |"), strict=True):
        command = [sys.executable, "-m", *command]
        finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert said in re.sub(" +", " ", finished.stdout), finished.stderr  # the columns are aligned


def test_every_file_that_the_readme_names_is_there():
    found = links(README)
    assert found and all((ROOT / link).is_file() for link in found)
