"""The tables, recipes and code of docs/teachers.md agree with the package."""

import re
import shlex
import subprocess
import sys

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel, ViTConfig, ViTModel

from hawaii.__main__ import main
from hawaii.files.user_error import UserError
from hawaii.tests.documents import blocks, read
from hawaii.tests.tiny.training import save_image_processor, write_recipe
from hawaii.training.counting.teachers import describe_presets
from hawaii.training.teachers import loading
from hawaii.training.teachers.config import TeacherConfig
from hawaii.training.teachers.loading import load_teacher, outline_teacher
from hawaii.training.teachers.presets import expand_teachers


TEACHERS = read("docs/teachers.md")


@pytest.mark.timm
def test_the_tables_are_the_output_of_the_command():
    assert describe_presets() in TEACHERS


def test_each_recipe_names_teachers():
    (first, second, third), *_ = [block.splitlines() for block in blocks(TEACHERS, "yaml")]
    names = [
        [teacher.name for teacher in expand_teachers(yaml.safe_load(line)["teachers"])] for line in (first, second)
    ]
    assert names == [["clip", "convnext", "eva02"]] * 2
    assert [teacher.name for teacher in expand_teachers(yaml.safe_load(third)["teachers"])][-1] == "sam"
    for block in blocks(TEACHERS, "yaml")[1:]:
        assert len(expand_teachers(yaml.safe_load(block)["teachers"])) >= 3


def test_the_commands_of_a_cache_run(tmp_path, monkeypatch, teacher_folders):
    (block,) = blocks(TEACHERS, "bash")
    write_recipe(tmp_path, teacher_folders, max_steps=1)
    monkeypatch.chdir(tmp_path)
    commands = [shlex.split(line) for line in block.splitlines()]
    assert [command[:2] for command in commands] == [["hawaii", "cache"], ["hawaii", "train"]]
    for command in commands:
        assert main(command[1:]) == 0
    assert (tmp_path / "run" / "hub" / "model.safetensors").is_file()


def test_a_cached_image_takes_the_bytes_of_its_tokens():
    sizes = {"hawaii": 1024 + 3072 + 1024, "frontier": 1152 + 4 * 1024 + 9 * 256}
    (sentence,) = re.findall(r"channels of all teachers: (.*?), half", TEACHERS, re.DOTALL)
    numbers = dict(zip(re.findall(r"`(\w+)`", sentence), re.findall(r"([\d.]+) MiB", sentence)))
    assert numbers == {name: f"{24 * 24 * channels / 2**20:.1f}" for name, channels in sizes.items()}


def test_the_code_that_inspects_a_teacher_runs(tmp_path):
    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=4)
    ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "models" / "my_expert")
    save_image_processor(tmp_path / "models" / "my_expert", 16)
    code = next(block for block in blocks(TEACHERS, "python") if "my_expert" in block)
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.stdout == "my_expert 16 (4, 4, 16)\n", result.stderr


class GreyConfig(PretrainedConfig):
    model_type = "grey"
    image_size: int = 16


class GreyModel(PreTrainedModel):
    """Averages patches of 4 pixels."""

    config_class = GreyConfig
    main_input_name = "pixel_values"

    def __init__(self, config):
        super().__init__(config)
        self.scale = torch.nn.Parameter(torch.ones(1))
        self.post_init()

    def forward(self, pixel_values):
        return {"grid": torch.nn.functional.avg_pool2d(pixel_values, 4) * self.scale}  # (I, 1, 4, 4)


def test_a_new_kind_of_teacher_is_loaded_and_outlined(tmp_path, monkeypatch):
    AutoConfig.register("grey", GreyConfig, exist_ok=True)
    AutoModel.register(GreyConfig, GreyModel, exist_ok=True)
    GreyModel(GreyConfig()).save_pretrained(tmp_path)
    save_image_processor(tmp_path, 16)
    config = TeacherConfig(str(tmp_path))
    with pytest.raises(UserError, match="cannot process 16 x 16 pixels: 'dict' object has no attribute"):
        load_teacher(config)
    scope = {}
    exec(next(block for block in blocks(TEACHERS, "python") if "GreyTeacher" in block), scope)
    monkeypatch.setattr(loading, "TEACHER_KINDS", [scope["GreyTeacher"], *loading.TEACHER_KINDS])
    image = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    image[..., 4:8, 12:] = 255
    teacher = load_teacher(config)
    assert teacher.grid == outline_teacher(config).grid == (4, 4, 1)
    assert teacher(image).argmax() == 1 * 4 + 3
