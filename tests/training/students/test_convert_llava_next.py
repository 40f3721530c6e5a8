"""A converted LLaVA-NeXT gives the original's logits and answers in both versions of transformers."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hawaii.__main__ import main
from hawaii.modeling_hawaii.conversion.llava import convert_llava
from hawaii.tests.folders import TRANSFORMERS_VERSIONS
from hawaii.tests.tiny.llava_next import TEMPLATES, save_llava_next


SCRIPT = Path(__file__).with_name("compare_with_llava_next.py")
CLOSE = 1e-5  # of logits with a standard deviation of 1.6, in float32


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A LLaVA-NeXT of each family, and the folder that the command makes of it."""
    base = tmp_path_factory.mktemp("llava_next")
    pairs = []
    for family in TEMPLATES:
        pairs += [save_llava_next(base / "llava" / family, family), base / "student" / family]
        assert main(["convert", "llava", str(pairs[-2]), str(pairs[-1])]) == 0
    return pairs


@pytest.fixture(scope="module", params=TRANSFORMERS_VERSIONS)
def published(request, folders, tmp_path_factory):
    """The findings of `compare_with_llava_next.py`, in a process with a separate home and module path."""
    output = tmp_path_factory.mktemp("output")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HF_"))}
    environment |= {"HF_HOME": str(output / "home"), "HF_HUB_OFFLINE": "1", "PYTHONSAFEPATH": "1"}
    command = [TRANSFORMERS_VERSIONS[request.param], SCRIPT, output, *folders]
    finished = subprocess.run(command, cwd=output, env=environment, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr[-4000:]
    report = json.loads(finished.stdout.splitlines()[-1])
    assert report["version"].startswith(request.param[-1] + ".") and report["package_modules"] == []
    return report["reports"], output


@pytest.fixture(params=TEMPLATES)
def batches(request, published):
    report = published[0][request.param]
    assert report["classes"] == ["HawaiiForConditionalGeneration", "HawaiiProcessor"]
    return report["batches"]


def test_the_processors_make_the_same_prompts_and_tokens(batches):
    for batch in batches:
        assert batch["prompts"][0] == batch["prompts"][1]
        assert batch["are equal"] == {"input_ids": True, "attention_mask": True, "image_sizes": True}
        assert batch["dimensions"] == [4, 5]


def test_logits_equal_the_llavas_on_the_inputs_of_either_processor(batches):
    for batch in batches:
        assert max(batch["difference"].values()) < CLOSE
        assert batch["difference of swapped tiles"] > 100 * CLOSE


def test_answers_equal_the_llavas(batches):
    for batch in batches:
        assert batch["answers"][0] == batch["answers"][1] == batch["answers"][2]


def test_a_checkpoint_that_either_version_saved_converts_to_the_logits_of_that_version(published):
    reports, output = published
    for family in reports:
        student = convert_llava(output / family / "llava").model
        saved = load_file(output / family / "logits.safetensors")
        names = ("input_ids", "attention_mask", "pixel_values", "image_sizes")
        with torch.no_grad():
            logits = student(**{name: saved[f"{name} 1"] for name in names}).logits
        mask = saved["attention_mask 1"].bool()
        torch.testing.assert_close(logits[mask], saved["llava 1"][mask], rtol=0, atol=CLOSE)
