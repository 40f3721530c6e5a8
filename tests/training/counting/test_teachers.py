"""Costs of the presets at full size."""

import sys
from functools import lru_cache

import pytest

from hawaii.__main__ import main
from hawaii.training.counting import teachers as counting
from hawaii.training.counting.teachers import describe_presets, student_flops, teacher_cost
from hawaii.training.teachers.presets import TEACHER_SETS, expand_teachers


# Side of the image, grid, channels: of the paper's five from its table.
SHAPES = {
    "clip": (336, (24, 24, 1024)),
    "convnext": (768, (24, 24, 3072)),
    "eva02": (448, (32, 32, 1024)),
    "pix2struct": (720, (45, 45, 1536)),
    "sam": (1024, (64, 64, 256)),
    "siglip2": (384, (24, 24, 1152)),
    "dinov3": (768, (48, 48, 1024)),
    "sam3": (1008, (72, 72, 256)),
    "radio": (768, (48, 48, 1280)),
}
NEED_TIMM = ("convnext", "eva02")


def transformer_flops(num_tokens, width, hidden, num_layers):
    """Two for each multiplication: four projections, two layers of the feed-forward network, attention twice."""
    return num_layers * 2 * num_tokens * (4 * width**2 + 2 * width * hidden + 2 * num_tokens * width)


@lru_cache
def cost_of(name):
    """Counting a preset takes seconds."""
    (config,) = expand_teachers(name)
    return teacher_cost(config)


def check_shape(name):
    cost = cost_of(name)
    assert (cost.name, cost.image_size, cost.grid) == (name, *SHAPES[name])


@pytest.mark.parametrize("name", [name for name in SHAPES if name not in NEED_TIMM])
def test_a_preset_has_its_size_and_its_grid(name):
    check_shape(name)


@pytest.mark.timm
@pytest.mark.parametrize("name", NEED_TIMM)
def test_a_timm_preset_has_the_size_and_grid_of_the_paper(name):
    check_shape(name)


def test_the_flops_of_clip_are_those_of_23_layers():
    patches = 2 * 576 * 3 * 14 * 14 * 1024
    assert cost_of("clip").flops == patches + transformer_flops(577, 1024, 4096, num_layers=23)


@pytest.mark.parametrize(
    ("name", "num_tokens", "width", "hidden", "num_layers", "num_patches"),
    [
        ("siglip2", 576, 1152, 4304, 27, 576),
        ("dinov3", 2309, 1024, 4096, 24, 2304),
        ("radio", 2314, 1280, 5120, 32, 2304),
    ],
)
def test_the_flops_of_a_newer_expert_are_those_of_its_layers(name, num_tokens, width, hidden, num_layers, num_patches):
    patches = 2 * num_patches * 3 * 16 * 16 * width
    assert cost_of(name).flops == patches + transformer_flops(num_tokens, width, hidden, num_layers)


def test_the_flops_of_sam_3_are_those_of_windows_and_of_one_layer_of_its_neck():
    patches = 2 * 72 * 72 * 3 * 14 * 14 * 1024
    windows = 9 * transformer_flops(24 * 24, 1024, 4736, num_layers=28)
    everywhere = transformer_flops(72 * 72, 1024, 4736, num_layers=4)
    neck = 2 * 72 * 72 * 256 * (1024 + 9 * 256)
    assert cost_of("sam3").flops == patches + windows + everywhere + neck


@pytest.mark.timm
def test_the_flops_of_a_convolution_grow_with_the_square_of_the_image_size():
    small, large = (expand_teachers([{"preset": "convnext", "image_size": size}])[0] for size in (384, 768))
    assert teacher_cost(large).flops == 4 * teacher_cost(small).flops


def test_the_student_needs_2_percent_more_flops_than_clip():
    assert 1.02 < student_flops(3) / cost_of("clip").flops < 1.03


@pytest.mark.timm
def test_the_table_adds_up_the_papers_sets():
    rows = [line.strip("|").split("|") for line in describe_presets().splitlines() if line.startswith("|")]
    rows = {name.strip(): [cell.strip() for cell in cells] for name, *cells in rows}
    for name, members in TEACHER_SETS.items():
        gflops = float(rows[name][-2])
        assert gflops == pytest.approx(sum(float(rows[member][4]) for member in members), abs=3)  # each is rounded
        assert float(rows[name][-1]) == pytest.approx(gflops * 1e9 / student_flops(len(members)), abs=0.01)


def test_without_timm_the_other_presets_are_shown_and_one_line_says_what_is_missing(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setattr(counting, "teacher_cost", lambda config: cost_of(config.name))
    assert main(["teachers"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {
        cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in (line[1:-1].split("|") for line in lines)
    }
    for name in SHAPES:
        shown = "-" if name in NEED_TIMM else f"{cost_of(name).num_parameters / 1e6:.1f} M"
        assert rows[name][0] == shown
        assert (rows[name] == ["-"] * 6) == (name in NEED_TIMM)
    for name, members in TEACHER_SETS.items():
        assert rows[name][0] == ", ".join(members)
        assert (rows[name][1:] == ["-"] * 3) == any(member in NEED_TIMM for member in members)
    assert lines[-1].startswith("Not counted: convnext, eva02. The teacher timm/convnext")
    assert "needs timm" in lines[-1] and 'pip install "hawaii-vlm[timm]"' in lines[-1]
