"""Finished and interrupted runs of `hawaii train`."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file

from hawaii.training.monitoring.monitor import CLOCK_ENTRIES
from hawaii.training.train import train


def logged_steps(run: Path, stage: str) -> list[dict]:
    """Returns the log entries of training steps, without what depends on the clock."""
    entries = map(json.loads, (run / stage / "log.jsonl").read_text().splitlines())
    return [
        {name: value for name, value in entry.items() if name not in CLOCK_ENTRIES}
        for entry in entries
        if "loss" in entry
    ]


def weights_of(run: Path, *stages: str) -> dict[str, torch.Tensor]:
    """Returns the weights of each stage's student and objective."""
    files = [path for stage in stages for path in sorted((run / stage / "model").glob("*.safetensors"))]
    assert len(files) == 2 * len(stages)
    return {f"{path.parent.parent.name} {name}": tensor for path in files for name, tensor in load_file(path).items()}


def assert_resumes_bit_for_bit(recipe: Path, overrides: list[str], finished: Path, scratch: Path) -> None:
    """Resumes a copy of a run of two stages, four steps each, after its second step, and compares the results."""
    stages = list(json.loads((finished / "train_results.json").read_text())["stages"])
    first, second = stages
    folder = scratch / "run"
    shutil.copytree(finished, folder)
    # Like a run that was killed in its first stage.
    for left in ("hub", second, f"{first}/model", f"{first}/checkpoint-4"):
        shutil.rmtree(folder / left)
    (folder / "train_results.json").unlink()
    train(str(recipe), [*overrides, f"output_dir={folder}"])
    expected, actual = weights_of(finished, *stages), weights_of(folder, *stages)
    assert actual.keys() == expected.keys()
    assert [key for key, tensor in expected.items() if not torch.equal(actual[key], tensor)] == []
    for stage in stages:
        assert logged_steps(finished, stage) == logged_steps(folder, stage)
        assert len(logged_steps(finished, stage)) == 4
    hubs = [run / "hub" / "model.safetensors" for run in (finished, folder)]
    assert hubs[0].read_bytes() == hubs[1].read_bytes()
