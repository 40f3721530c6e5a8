"""With a pinned revision, a repository gives the same model whatever is pushed to it later."""

import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from hawaii import HawaiiForConditionalGeneration, HawaiiProcessor
from hawaii.hub_cards.publish import publish
from hawaii.tests.folders import TRANSFORMERS_VERSIONS


SCRIPT = Path(__file__).with_name("load_pinned.py")


@pytest.mark.parametrize("python", TRANSFORMERS_VERSIONS.values(), ids=TRANSFORMERS_VERSIONS)
def test_weights_and_code_that_are_pushed_later_are_not_used(folder, hub, tmp_path, python):
    publish(str(folder), "user/name")
    revision = hub.repositories["user/name"].branches["main"]
    intruder = f"\nopen({str(tmp_path / 'trace')!r}, 'w').close()\n".encode()
    changed = {path.name: path.read_bytes() + intruder for path in folder.glob("*_hawaii.py")}
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"].mul_(-1)
    changed["model.safetensors"] = save(weights, metadata={"format": "pt"})
    changed["custom_generate/generate.py"] = intruder + b"def generate(model, **kwargs): return None\n"
    hub.push("user/name", changed)

    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HF_"))}
    environment |= {**hub.environment, "HF_HOME": str(tmp_path / "home"), "PYTHONSAFEPATH": "1"}
    command = [python, SCRIPT, "user/name", revision, tmp_path / "logits.st", tmp_path / "trace"]
    options = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "timeout": 600}
    finished = subprocess.run(command, **options)
    assert finished.returncode == 0, finished.stderr[-4000:]
    assert finished.stdout.splitlines()[-2:] == ["pinned False", "main True"]
    logits = load_file(tmp_path / "logits.st")
    inputs = HawaiiProcessor.from_pretrained(folder)(text="what color is the shape ?", return_tensors="pt")
    with torch.no_grad():
        expected = HawaiiForConditionalGeneration.from_pretrained(folder).eval()(**inputs).logits
    torch.testing.assert_close(logits["pinned"], expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(logits["main"], -expected, rtol=0, atol=1e-5)
