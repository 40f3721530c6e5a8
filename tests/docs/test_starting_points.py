"""docs/starting_points.md matches the command and the converters."""

import re
import subprocess
import sys

import pytest
import torch

from hawaii.__main__ import build_parser
from hawaii.files.user_error import UserError
from hawaii.modeling_hawaii.conversion.checkpoint_tensors import CheckpointTensors
from hawaii.modeling_hawaii.conversion.llava import convert_llava
from hawaii.tests.documents import blocks, read
from hawaii.tests.tiny.llava import make_llava, save_clip, save_original
from hawaii.training.recipes.arguments import ModelArguments
from hawaii.training.students.convert import UNUSED_FILE


DOCUMENT = read("docs/starting_points.md")


def test_every_command_parses():
    (commands,) = blocks(DOCUMENT, "bash")
    parsed = [vars(build_parser().parse_args(line.split()[1:])) for line in commands.splitlines()]
    models = [options["handler"].partition("save_")[2] for options in parsed]
    assert models == ["clip", "clip", "llava", "llava", "llava", "move_kd"]


def test_the_recipe_keys_and_the_file_exist():
    keys = {"vision_tower", "language_model", "llava", "vision_config", "text_config"}
    assert keys <= set(re.findall(r"`(\w+)`", DOCUMENT)) & set(ModelArguments.__dataclass_fields__)
    assert f"`{UNUSED_FILE}`" in DOCUMENT


@pytest.mark.parametrize("num_files", [1, 2])
def test_the_code_that_rewrites_pickles_makes_a_convertible_checkpoint(tmp_path, num_files):
    models = tmp_path / "models"
    models.mkdir()
    folder = save_original(make_llava(), models / "llava-v1.5-7b", save_clip(models / "clip"))
    saved = CheckpointTensors(folder)
    tensors = {name: tensor.clone() for name, tensor in saved.read(saved.names)}
    (folder / "model.safetensors").unlink()
    for number in range(num_files):
        part = {name: tensors[name] for name in list(tensors)[number::num_files]}
        torch.save(part, folder / f"pytorch_model-{number + 1:05}-of-{num_files:05}.bin")
    with pytest.raises(UserError, match=r"docs/starting_points\.md"):
        convert_llava(folder)
    (code,) = blocks(DOCUMENT, "python")
    finished = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
    converted = convert_llava(folder).model
    assert torch.equal(converted.lm_head.weight[:40], tensors["lm_head.weight"])
