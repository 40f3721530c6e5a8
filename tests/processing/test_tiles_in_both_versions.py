"""A published model with tiles gives the same inputs and logits in both versions, and LLaVA-NeXT's inputs of each."""

import json
import os
import subprocess

import pytest
import torch
from safetensors.torch import save_file

from hawaii import HawaiiForConditionalGeneration, HawaiiProcessor
from hawaii.tests.documents import ROOT
from hawaii.tests.folders import TRANSFORMERS_VERSIONS
from hawaii.tests.processing.use_tiles import logits_of, make_inputs
from hawaii.tests.tiny.models import save_tiled_folder


SCRIPT = ROOT / "tests" / "processing" / "use_tiles.py"
INPUTS = {"input_ids", "attention_mask", "pixel_values", "image_sizes"}
LLAVA_NEXT = {"LLaVA-NeXT's pixels", "LLaVA-NeXT's tokens", "LLaVA-NeXT's sizes"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The published folder, next to the reference."""
    torch.manual_seed(0)
    base = tmp_path_factory.mktemp("tiles")
    save_tiled_folder(base / "hub")
    processor = HawaiiProcessor.from_pretrained(base / "hub")
    images, _, inputs = make_inputs(processor)
    logits = logits_of(HawaiiForConditionalGeneration.from_pretrained(base / "hub"), inputs)
    num_tiles = processor.count_tiles([(image.height, image.width) for image in images])
    reference = {**inputs, "logits": logits, "num_tiles": torch.tensor(num_tiles)}
    save_file({name: tensor.contiguous() for name, tensor in reference.items()}, base / "reference.safetensors")
    return base / "hub"


@pytest.mark.parametrize("version", TRANSFORMERS_VERSIONS)
def test_inputs_and_logits_are_the_publishers_before_and_after_saving_again(folder, tmp_path, version):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HF_"))}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "PYTHONSAFEPATH": "1"}
    command = [
        TRANSFORMERS_VERSIONS[version],
        SCRIPT,
        folder,
        folder.parent / "reference.safetensors",
        tmp_path / "new",
    ]
    finished = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr[-4000:]
    report = json.loads(finished.stdout.splitlines()[-1])
    assert report["version"].startswith(version[-1])
    assert report["published"] == report["saved again"]
    differences = report["published"]
    assert differences.keys() == INPUTS | LLAVA_NEXT | {"logits", "truncation"}
    assert differences.pop("truncation").startswith("Mismatch in `image` token count between text and `input_ids`")
    assert differences.pop("logits") < 1e-4
    assert differences.pop("LLaVA-NeXT's pixels") < 1e-6  # a grey level is more than 0.0146
    assert not any(differences.values()), differences
