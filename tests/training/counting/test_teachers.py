"""Costs of the presets at full size."""

import sys

import pytest

from hawaii.__main__ import main
from hawaii.training.counting.teachers import describe_presets, student_flops, teacher_cost
from hawaii.training.teachers.presets import TEACHER_SETS, expand_teachers


# From the paper's table: side of the image, grid, channels.
SHAPES = {
    "clip": (336, (24, 24, 1024)),
    "convnext": (768, (24, 24, 3072)),
    "eva02": (448, (32, 32, 1024)),
    "pix2struct": (720, (45, 45, 1536)),
    "sam": (1024, (64, 64, 256)),
}
NEED_TIMM = ("convnext", "eva02")


def transformer_flops(num_tokens, width, hidden, num_layers):
    """Two for each multiplication: four projections, two layers of the feed-forward network, attention twice."""
    return num_layers * 2 * num_tokens * (4 * width**2 + 2 * width * hidden + 2 * num_tokens * width)


def check_shape(name):
    (config,) = expand_teachers(name)
    cost = teacher_cost(config)
    assert (cost.name, cost.image_size, cost.grid) == (name, *SHAPES[name])


@pytest.mark.parametrize("name", [name for name in SHAPES if name not in NEED_TIMM])
def test_a_preset_has_the_size_and_grid_of_the_paper(name):
    check_shape(name)


@pytest.mark.timm
@pytest.mark.parametrize("name", NEED_TIMM)
def test_a_timm_preset_has_the_size_and_grid_of_the_paper(name):
    check_shape(name)


def test_the_flops_of_clip_are_those_of_23_layers():
    (config,) = expand_teachers("clip")
    patches = 2 * 576 * 3 * 14 * 14 * 1024
    assert teacher_cost(config).flops == patches + transformer_flops(577, 1024, 4096, num_layers=23)


@pytest.mark.timm
def test_the_flops_of_a_convolution_grow_with_the_square_of_the_image_size():
    small, large = (expand_teachers([{"preset": "convnext", "image_size": size}])[0] for size in (384, 768))
    assert teacher_cost(large).flops == 4 * teacher_cost(small).flops


def test_the_student_needs_2_percent_more_flops_than_clip():
    (config,) = expand_teachers("clip")
    assert 1.02 < student_flops(3) / teacher_cost(config).flops < 1.03


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
    assert main(["teachers"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {
        cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in (line[1:-1].split("|") for line in lines)
    }
    for name in SHAPES:
        (config,) = expand_teachers(name)
        shown = "-" if name in NEED_TIMM else f"{teacher_cost(config).num_parameters / 1e6:.1f} M"
        assert rows[name][0] == shown
        assert (rows[name] == ["-"] * 6) == (name in NEED_TIMM)
    for name, members in TEACHER_SETS.items():
        assert rows[name][0] == ", ".join(members)
        assert (rows[name][1:] == ["-"] * 3) == any(member in NEED_TIMM for member in members)
    assert lines[-1].startswith("Not counted: convnext, eva02. The teacher timm/convnext")
    assert "needs timm" in lines[-1] and 'pip install "hawaii-vlm[timm]"' in lines[-1]
