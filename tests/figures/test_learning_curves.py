"""Tests of learning curves."""

import json

from PIL import Image

from hawaii.ablation.run import read_curve
from hawaii.figures.learning_curves import draw_curves, summarize_curves


def write_log(folder, entries):
    folder.mkdir()
    (folder / "log.jsonl").write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))


def test_steps_and_seconds_of_earlier_stages_are_added(tmp_path):
    write_log(tmp_path / "pretrain", [{"step": 5, "loss": 1.0}])
    measured = [{"step": step, "eval_accuracy": step / 10, "train_seconds": step * 2.0} for step in (2, 4)]
    write_log(tmp_path / "finetune", [{"step": 2, "loss": 1.0}, *measured, {"step": 4, "train_runtime": 9.0}])
    stages = {"pretrain": {"steps": 5, "seconds": 30.5}, "finetune": {"steps": 4, "seconds": 8.0}}
    assert read_curve(tmp_path, stages) == [
        {"step": 7, "seconds": 34.5, "accuracy": 0.2},
        {"step": 9, "seconds": 38.5, "accuracy": 0.4},
    ]


def test_a_stage_without_a_log_has_no_curve(tmp_path):
    assert read_curve(tmp_path, {"pretrain": {"steps": 5, "seconds": 1.0}}) == []


def make_run(*points):
    return {"curve": [dict(zip(("step", "seconds", "accuracy"), point)) for point in points]}


def test_a_row_is_the_mean_and_the_range_of_its_seeds():
    runs = [make_run((10, 4.0, 0.5), (20, 8.0, 0.75)), make_run((10, 6.0, 0.25))]
    assert summarize_curves(runs) == [
        {"steps": 10, "seconds": 5.0, "mean": 37.5, "lowest": 25.0, "highest": 50.0, "num_seeds": 2},
        {"steps": 20, "seconds": 8.0, "mean": 75.0, "lowest": 75.0, "highest": 75.0, "num_seeds": 1},
    ]
    assert summarize_curves([make_run()]) == []


def test_two_figures_and_their_numbers_are_written_reproducibly(tmp_path):
    curves = {f"row {n}": summarize_curves([make_run((1, 2.0, 0.1 * n), (2, 4.0, 0.2))]) for n in range(2)}
    for folder in ("first", "second"):
        draw_curves(curves, tmp_path / folder)
    for kind in ("steps", "seconds"):
        path = tmp_path / "first" / f"accuracy_against_{kind}.png"
        assert Image.open(path).size[0] > 1000
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes()
        assert json.loads(path.with_suffix(".json").read_text())["rows"] == curves


def test_rows_differ_in_colour_and_marker(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    drawn, plot = [], Axes.plot
    monkeypatch.setattr(
        Axes, "plot", lambda self, *args, **kwargs: drawn.append(kwargs) or plot(self, *args, **kwargs)
    )
    draw_curves({str(n): summarize_curves([make_run((1, 2.0, 0.1))]) for n in range(8)}, tmp_path)
    steps = drawn[:8]
    assert len({kwargs["color"] for kwargs in steps}) == len({kwargs["marker"] for kwargs in steps}) == 8
