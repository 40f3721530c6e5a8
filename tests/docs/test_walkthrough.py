"""docs/training.md: every command from two downloads to a published model runs, on tiny models."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub.cli import download
from huggingface_hub.cli.hf import app

from hawaii.__main__ import main
from hawaii.evaluation.paper.benchmarks import BENCHMARKS
from hawaii.tests.documents import ROOT, blocks, read
from hawaii.tests.folders import uploaded
from hawaii.tests.tiny.processes import CPUS_AS_GPUS
from hawaii.tests.tiny.training import write_recipe
from hawaii.training.recipes.recipe import read_recipe


SECTION = read("docs/training.md").partition("## From two downloads")[2].partition("\n## ")[0]
DOWNLOADS, EIGHT_GPUS, ONE_CARD, AFTERWARDS = (
    [shlex.split(line) for line in block.splitlines()] for block in blocks(SECTION, "bash")
)
FILES = {"liuhaotian/LLaVA-Pretrain": ["blip_laion_cc_sbu_558k.json", "images.zip"]}


@pytest.fixture
def world(tmp_path, teacher_folders, monkeypatch):
    """A working directory in which the recipes of the document are tiny, and a Hub that has tiny data."""
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "source"
    source.mkdir()
    recipe = yaml.safe_load(write_recipe(source, teacher_folders).read_text())
    archive = shutil.make_archive(str(source / "images"), "zip", source / "images")

    def fetch(folder, name):
        Path(folder).mkdir(parents=True, exist_ok=True)
        shutil.copy(archive if name == "images.zip" else source / "data.json", Path(folder) / name)
        return folder

    def fetch_all(*, repo_id, local_dir, **options):
        for name in FILES[repo_id]:
            fetch(local_dir, name)
        return local_dir

    monkeypatch.setattr(download, "snapshot_download", fetch_all)
    monkeypatch.setattr(
        download, "hf_hub_download", lambda *, filename, local_dir, **options: fetch(local_dir, filename)
    )
    del recipe["data_path"], recipe["image_folder"], recipe["output_dir"]
    for name in ("hawaii_vicuna_7b", "hawaii_vicuna_7b_lora"):
        plan = read_recipe(name, use_cpu=True)
        original = plan.stages
        tiny = {**recipe, "card": plan.card, "output_dir": f"runs/{name}", "save_strategy": "no", "max_steps": 1}
        tiny["stages"] = {
            stage: {
                **recipe["stages"][stage],
                "data_path": original[stage].data.data_path,
                "image_folder": original[stage].data.image_folder,
            }
            for stage in original
        }
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(tiny, sort_keys=False))
    lora = {"r": 2, "lora_alpha": 4}
    tiny["stages"]["finetune"] |= {"lora": lora}
    tiny["bf16"] = True
    (tmp_path / "hawaii_vicuna_7b_lora.yaml").write_text(yaml.safe_dump(tiny, sort_keys=False))
    return tmp_path


def run(words):
    assert words[0] == "hawaii"
    return main([f"{word}.yaml" if word.startswith("hawaii_vicuna") else word for word in words[1:]])


def launch(words):
    """Runs `accelerate launch` with two processes on CPUs that take themselves for GPUs."""
    assert words[:3] == ["accelerate", "launch", "--config_file"]
    command = [str(Path(sys.executable).parent / words[0]), "launch", "--config_file", str(ROOT / words[3])]
    command += ["--num_processes", "2", "--main_process_port", "0"]
    command += [f"{word}.yaml" if word.startswith("hawaii_") else word for word in words[4:]]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(CPUS_AS_GPUS), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "ACCELERATE_TORCH_DEVICE": "cpu",
        "OMP_NUM_THREADS": "1",
    }
    result = subprocess.run([*command, "use_cpu=false"], env=environment, capture_output=True, text=True, timeout=400)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.mark.slow
def test_every_command_runs_in_order(world, monkeypatch, capsys, request):
    for words in DOWNLOADS:
        assert words[0] == "hf"
        app.main(words[1:], standalone_mode=False)
    shutil.copytree(world / "source" / "images", world / "data" / "llava_finetune" / "images")
    shutil.rmtree(world / "source" / "images")

    dry_run, check, train = EIGHT_GPUS
    assert run(dry_run) == run(check) == 0
    printed = capsys.readouterr().out
    assert "Memory of each device, 8 x A100 with fsdp2, in GiB" in printed
    assert "uses all rows" in printed and "training stops" not in printed
    assert "Strategy fsdp2: 2 processes" in launch(train)
    hub = world / "runs" / "hawaii_vicuna_7b" / "hub"
    assert (hub / "model.safetensors").is_file() and (hub / "modeling_hawaii.py").is_file()

    (one_card,) = ONE_CARD
    assert run(one_card) == 0
    stages = {
        name: json.loads((world / "runs/hawaii_vicuna_7b_lora" / name / "model/stage.json").read_text())
        for name in ("pretrain", "finetune")
    }
    assert {name: stage["batch_size"] for name, stage in stages.items()} == {"pretrain": 256, "finetune": 128}

    plot, evaluate, inspect, publish = AFTERWARDS
    assert run(plot) == 0
    assert (world / "runs/hawaii_vicuna_7b/training_finetune.png").is_file()
    suites = []
    monkeypatch.setattr("hawaii.evaluation.evaluate.evaluate", lambda *args, **options: suites.append((args, options)))
    run(evaluate)
    ((arguments, options),) = suites  # tests/evaluation/test_paper_suite.py runs it
    assert options["suite"] == "paper" and len(BENCHMARKS) == 10
    server = request.getfixturevalue("hub")
    assert run(inspect) == 0 and not server.requests
    assert run(publish) == 0
    assert {"README.md", "recipe.yaml", "model.safetensors", "modeling_hawaii.py"} <= uploaded(server, "USER/NAME")


def test_the_folders_are_those_of_the_recipes():
    stages = read_recipe("hawaii_vicuna_7b", use_cpu=True).stages
    folders = [words[words.index("--local-dir") + 1] for words in DOWNLOADS]
    for stage, folder in zip(stages.values(), folders, strict=True):
        assert Path(stage.data.data_path).parent == Path(folder) == Path(stage.data.image_folder).parent
        assert Path(stage.data.data_path).name in FILES.get(DOWNLOADS[0][2], []) + DOWNLOADS[1]
    assert f"`{stages['finetune'].data.image_folder}`" in SECTION
