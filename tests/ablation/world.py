"""A recipe and its data for `hawaii ablate`, whose trainings and evaluations take no time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml

from hawaii.tests.tiny.waiting import wait_until


STAND_IN = Path(__file__).with_name("stand_in_hawaii.py")
RECIPE = {
    "teachers": ["owner/resnet", "owner/vit"],
    "tokenizer": "${output_dir}/tokenizer",
    "vision_config": {},
    "text_config": {"model_type": "llama"},
    "data_path": "${output_dir}/data.json",
    "image_folder": "${output_dir}/images",
    "max_steps": 6,
    "report_to": "none",
    "stages": {
        "pretrain": {"chat_template": "plain"},
        "finetune": {"eval_data_path": "${output_dir}/validation.json", "eval_strategy": "steps"},
    },
}


class World:
    """A recipe, its data, and the settings and calls of the stand-in for `hawaii train` and `hawaii evaluate`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.output = folder / "ablation"
        self.settings = {"calls": str(folder / "calls")}
        (folder / "data" / "data").mkdir(parents=True)
        (folder / "data" / "data" / "test.parquet").touch()
        self.write_recipe()

    def write_recipe(self, **changes) -> None:
        recipe = {"output_dir": str(self.folder / "data"), **RECIPE, **changes}
        (self.folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))

    def words(self, words: str) -> list[str]:
        fixed = ["--tasks", "easy_vqa", "--output_dir", str(self.output)]
        return ["ablate", str(self.folder / "recipe.yaml"), *fixed, *words.split()]

    def launcher(self) -> str:
        """A launcher that, when it is ended, leaves the training that it started."""
        path = self.folder / "launcher"
        path.write_text(f'#!/bin/sh\n"{sys.executable}" "$@" &\nwait $!\n')
        path.chmod(0o755)
        return str(path)

    def environment(self) -> dict[str, str]:
        return {**os.environ, "STAND_IN": json.dumps(self.settings)}

    def start(self, words: str) -> subprocess.Popen:
        """Starts the command in another process."""
        command = [sys.executable, str(STAND_IN), "-m", "hawaii", *self.words(words)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, env=self.environment(), **pipes)

    def calls(self) -> list[list]:
        path = self.folder / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []

    def trained(self) -> list[str]:
        return [name for command, name, *_ in self.calls() if command == "train"]

    def wait_for_calls(self, number: int, command: subprocess.Popen) -> list[list]:
        """Waits until a command that was started has made a number of calls; returns them."""
        wait_until(lambda: len(self.calls()) >= number, command)
        return self.calls()

    def read(self) -> dict:
        return json.loads((self.output / "ablation.json").read_text())
