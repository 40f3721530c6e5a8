"""`make demo` with all of its stages and few steps of each."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest


ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_demo_writes_a_published_folder_and_its_scores(tmp_path):
    assert shutil.which("make"), "make demo needs make"
    run = tmp_path / "run"
    flags = [
        f"RUN={run}",
        "DATA_FLAGS=--expert_steps 2",
        "TRAIN_FLAGS=stages.pretrain.max_steps=2 stages.finetune.max_steps=2 save_steps=1",
        "EVALUATE_FLAGS=--limit 12",
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "PYTEST"))}
    result = subprocess.run(
        ["make", "demo", *flags], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]

    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    assert results["num_questions"] == 12 and 0 <= results["accuracy"] <= 1
    assert results["accuracy_by_type"] and results["num_parameters"] > 100_000
    # A fast machine may round the seconds of two steps to zero.
    trained = json.loads((run / "train_results.json").read_text(encoding="utf-8"))
    assert results["train_seconds"] == trained["train_seconds"]
    hub = {path.name for path in (run / "hub").iterdir()}
    assert {"model.safetensors", "config.json", "modeling_hawaii.py", "chat_template.jinja", "README.md"} <= hub
    assert not any("objective" in name or "expert" in name or "optimizer" in name for name in hub)
    # A score of twelve questions is not published.
    assert "Not evaluated yet." in (run / "hub" / "README.md").read_text(encoding="utf-8")
    assert f"chat {run}/hub --image" in result.stdout.splitlines()[-1]
