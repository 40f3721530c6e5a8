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


def test_the_commands_for_one_machine_are_those_that_two_processes_run_in_the_tests():
    """`launcher_environment` gives the processes what these commands would."""
    full = ["--fsdp_state_dict_type", "FULL_STATE_DICT"]
    options = {"ddp": [[]], "fsdp2": [[], full], "zero2": [[]], "zero3": [[]]}
    expected = [(name, flags) for name, several in options.items() for flags in several]
    found = [(Path(words[3]).stem, words[4 : words.index("-m")]) for words in ONE_MACHINE]
    assert found == expected
    for words in ONE_MACHINE:
        assert words[:3] == ["accelerate", "launch", "--config_file"] and (ROOT / words[3]).is_file()
        assert words[words.index("-m") :] == ["-m", "hawaii", "train", "RECIPE"]
    tests = "".join(read(f"tests/training/distribution/{name}.py") for name in ("test_distributed", "test_zero"))
    assert 'launcher_environment("fsdp2", "--fsdp_state_dict_type", "FULL_STATE_DICT")' in tests
    for name in options:
        assert f'"{name}"' in tests


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
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    here = {"16": "2", "10.0.0.1": "127.0.0.1", "29500": port, "RECIPE": str(recipe)}
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(CPUS_AS_GPUS), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "ACCELERATE_TORCH_DEVICE": "cpu",
        "OMP_NUM_THREADS": "1",
    }
    launchers = []
    for words in TWO_MACHINES:
        command = [str(Path(sys.executable).parent / words[0]), *(here.get(word, word) for word in words[1:])]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        launchers.append(subprocess.Popen([*command, *options], cwd=ROOT, env=environment, **pipes))
    printed = [launcher.communicate(timeout=400)[0] for launcher in launchers]
    assert [launcher.returncode for launcher in launchers] == [0, 0], printed[0][-3000:]
    assert "Strategy fsdp2: 2 processes on 2 machines, CPU, float32." in printed[0].splitlines()
    assert (tmp_path / "run/hub/model.safetensors").is_file()
