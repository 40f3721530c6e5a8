"""docs/distributed.md: its commands start the runs of tests/training, and two launchers on one machine join."""

import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from hawaii.tests.documents import ROOT, blocks, read
from hawaii.tests.tiny.processes import CPUS_AS_GPUS
from hawaii.tests.tiny.training import write_recipe
from hawaii.training.recipes.arguments import STRATEGIES
from hawaii.training.recipes.recipe import read_recipe


DOCUMENT = read("docs/distributed.md")
ONE_MACHINE, TWO_MACHINES = ([shlex.split(line) for line in block.splitlines()] for block in blocks(DOCUMENT, "bash"))


# CPUs in the place of GPUs.
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(CPUS_AS_GPUS), *filter(None, [os.environ.get("PYTHONPATH")])]),
    "ACCELERATE_TORCH_DEVICE": "cpu",
    "OMP_NUM_THREADS": "1",
}


def find_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def start(words, *options):
    """Starts a command of the document in the root of the repository."""
    command = [str(Path(sys.executable).parent / words[0]), *words[1:], *options]
    if not Path(command[0]).is_file():  # an environment on top of another one has no scripts
        command[:1] = [sys.executable, "-m", "accelerate.commands.accelerate_cli"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, **pipes)


def strategy_of(words):
    assert words[:3] == ["accelerate", "launch", "--config_file"]
    return Path(words[3]).stem


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        pytest.param(
            words, marks=pytest.mark.deepspeed if "zero" in strategy_of(words) else (), id=" ".join(words[3:-4])
        )
        for words in ONE_MACHINE
    ],
)
def test_a_command_for_one_machine_trains_with_its_strategy(tmp_path, teacher_folders, words, monkeypatch):
    name = strategy_of(words)
    if "zero" in name:
        monkeypatch.setitem(ENVIRONMENT, "DS_ACCELERATOR", "cpu")
    recipe = write_recipe(tmp_path, teacher_folders, stages={"train": {}})
    place = words.index("-m")
    assert words[place:] == ["-m", "hawaii", "train", "RECIPE"]
    two = ["--num_processes", "2", "--main_process_port", find_port()]
    options = ["use_cpu=false", "max_steps=1", "save_strategy=no", f"strategy={name}", "num_processes=2"]
    launcher = start([*words[:place], *two, *words[place:-1], str(recipe)], *options, f"output_dir={tmp_path / 'run'}")
    printed, _ = launcher.communicate(timeout=400)
    assert launcher.returncode == 0, printed[-3000:]
    assert f"Strategy {name}: 2 processes on 1 machine, CPU, float32." in printed.splitlines()
    assert (tmp_path / "run/hub/model.safetensors").is_file()


def test_every_strategy_of_several_processes_has_a_file_and_a_row():
    names = [name for name in STRATEGIES if name != "single"]
    assert sorted(names) == sorted(path.stem for path in (ROOT / "training/accelerate").glob("*.yaml"))
    assert re.findall(r"^\| \[(\w+)\.yaml\]", DOCUMENT, flags=re.MULTILINE) == names
    listed = re.findall(r"`(\w+)`", DOCUMENT[DOCUMENT.index("`strategy` is") :].partition(".")[0])
    assert listed == ["strategy", *STRATEGIES]


def test_the_demands_are_options_of_a_recipe(tmp_path):
    (block,) = blocks(DOCUMENT, "yaml")
    recipe = {"extends": "easy_vqa", **yaml.safe_load(block)}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for stage in read_recipe(tmp_path / "recipe.yaml", use_cpu=True).stages.values():
        assert (stage.training.strategy, stage.training.num_processes) == ("fsdp2", 16)


@pytest.mark.slow
def test_the_commands_for_two_machines_join_two_launchers(tmp_path, teacher_folders):
    """Each machine has one process on a CPU; the rest of the command is the document's."""
    recipe = write_recipe(tmp_path, teacher_folders, stages={"train": {}})
    options = ["use_cpu=false", "max_steps=1", "save_strategy=no", "strategy=fsdp2", f"output_dir={tmp_path / 'run'}"]
    here = {"16": "2", "10.0.0.1": "127.0.0.1", "29500": find_port(), "RECIPE": str(recipe)}
    launchers = [start([here.get(word, word) for word in words], *options) for words in TWO_MACHINES]
    printed = [launcher.communicate(timeout=400)[0] for launcher in launchers]
    assert [launcher.returncode for launcher in launchers] == [0, 0], printed[0][-3000:]
    assert "Strategy fsdp2: 2 processes on 2 machines, CPU, float32." in printed[0].splitlines()
    assert (tmp_path / "run/hub/model.safetensors").is_file()
