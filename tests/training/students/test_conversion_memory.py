"""A conversion needs memory for the model and one file, but not for a second copy of the weights."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from hawaii.tests.modeling_hawaii.conversion.test_move_kd import make_adapters, save_move_kd
from hawaii.tests.tiny.llava import make_llava, save_as_transformers_4, save_clip, save_original, save_tensors
from hawaii.tests.training.students.test_convert import make_image_processor, make_tokenizer


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="Only Linux reports peak memory."),
]
SCRIPT = Path(__file__).with_name("measure_conversion.py")
# Wide and shallow, with Vicuna's vocabulary size: about 340 MB in bfloat16.
TEXT = {
    "vocab_size": 32000,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
}


def save(model_name: str, folder: Path) -> Path:
    """Saves a checkpoint in two files, with neighbouring tensors in different files."""
    if model_name == "clip":
        fields = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 6}
        clip = CLIPVisionModel(CLIPVisionConfig(**fields, image_size=32, patch_size=16))
        folder.mkdir()
        clip.config.save_pretrained(folder)
        save_tensors(folder, clip.state_dict(), num_files=2)
        make_image_processor().save_pretrained(folder)
        return folder
    llava = make_llava(text=TEXT).to(torch.bfloat16)
    tower = save_clip(folder.with_name("tower"), llava)
    make_image_processor().save_pretrained(tower)
    if model_name == "llava, transformers' format":
        folder.mkdir()
        save_as_transformers_4(llava, folder, num_files=2)
        make_image_processor().save_pretrained(folder)
    elif model_name == "llava, original format":
        save_original(llava, folder, tower, num_files=2)
    else:
        adapters = {name: tensor.bfloat16() for name, tensor in make_adapters().items()}
        save_move_kd(llava, adapters, folder, tower)
    make_tokenizer(with_image_token=model_name == "llava, transformers' format").save_pretrained(folder)
    return folder


def measure(*words) -> int:
    # The Makefile makes the C library keep freed memory, for training.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, SCRIPT, *map(str, words)]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return int(finished.stdout.splitlines()[-1])


@pytest.mark.parametrize("model_name", ["clip", "llava, transformers' format", "llava, original format", "move_kd"])
def test_the_peak_is_the_model_and_one_file(tmp_path, model_name):
    checkpoint = save(model_name, tmp_path / "checkpoint")
    largest = max(path.stat().st_size for path in checkpoint.glob("model-*.safetensors"))
    name = model_name.partition(",")[0]
    converting, command = measure(name, checkpoint), measure(name, checkpoint, tmp_path / "student")
    model = sum(path.stat().st_size for path in (tmp_path / "student").glob("model*.safetensors"))
    megabytes = {"model": model, "largest file": largest, "converting": converting, "command": command}
    print(model_name, {name: round(value / 2**20) for name, value in megabytes.items()})
    assert model > 200 * 2**20
    assert converting < model + 1.3 * largest
    assert command < model + 1.3 * largest
