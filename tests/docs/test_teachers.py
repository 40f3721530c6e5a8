"""What docs/teachers.md shows is what the package does: tables, recipes and code alike."""

import subprocess
import sys

import pytest
import yaml
from transformers import ViTConfig, ViTModel

from hawaii.tests.documents import blocks, read
from hawaii.tests.tiny.training import save_image_processor
from hawaii.training.counting.teachers import describe_presets
from hawaii.training.teachers.presets import expand_teachers


TEACHERS = read("docs/teachers.md")


@pytest.mark.timm
def test_the_tables_of_the_teachers_are_those_of_the_command():
    assert describe_presets() in TEACHERS


def test_each_way_to_name_teachers_is_understood():
    (first, second, third), *_ = [block.splitlines() for block in blocks(TEACHERS, "yaml")]
    names = [
        [teacher.name for teacher in expand_teachers(yaml.safe_load(line)["teachers"])] for line in (first, second)
    ]
    assert names == [["clip", "convnext", "eva02"]] * 2
    assert [teacher.name for teacher in expand_teachers(yaml.safe_load(third)["teachers"])][-1] == "sam"
    for block in blocks(TEACHERS, "yaml")[1:]:
        assert len(expand_teachers(yaml.safe_load(block)["teachers"])) >= 3


def test_the_code_that_looks_at_an_expert_runs(tmp_path):
    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=4)
    ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "models" / "my_expert")
    save_image_processor(tmp_path / "models" / "my_expert", 16)
    code = next(block for block in blocks(TEACHERS, "python") if "my_expert" in block)
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.stdout == "my_expert 16 (4, 4, 16)\n", result.stderr


def test_the_kind_of_teacher_that_is_shown_works():
    import torch
    from transformers.modeling_outputs import BaseModelOutput

    class GreyModel(torch.nn.Module):
        """Gives each patch its own mean, the first column first."""

        def __init__(self):
            super().__init__()
            self.config = ViTConfig(image_size=16, patch_size=4)
            self.scale = torch.nn.Parameter(torch.ones(1))

        def forward(self, pixels):
            means = torch.nn.functional.avg_pool2d(pixels, 4)  # (I, 1, 4, 4)
            return BaseModelOutput(last_hidden_state=means.transpose(2, 3).flatten(1).unsqueeze(-1) * self.scale)

    scope = {}
    exec(next(block for block in blocks(TEACHERS, "python") if "GreyTeacher" in block), scope)
    teacher = scope["GreyTeacher"]("grey", GreyModel(), 16, [0.0] * 3, [1.0] * 3)
    image = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    image[..., 4:8, 12:] = 255
    assert teacher.grid == (4, 4, 1)
    assert teacher(image).argmax() == 1 * 4 + 3
