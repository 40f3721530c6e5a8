"""`hawaii plot` draws what a run has logged, also of an interrupted one."""

import json

import pytest
from PIL import Image

from hawaii import __main__ as command
from hawaii.figures.training_curves import draw_stage, find_curves, read_logs
from hawaii.files.user_error import UserError
from hawaii.tests.tiny.training import write_recipe
from hawaii.training.train import train


ENTRIES = [
    {
        "step": step,
        "loss": 2.0 / step,
        "text": 1.0 / step,
        "fine/vit": 0.5,
        "grad_norm": 1.0,
        "learning_rate": 1e-3,
        "samples_per_second": 10.0,
        "load/teacher/vit": 0.25,
        "load/teacher/convnext": 0.75,
        "load_entropy/teacher": 0.8,
        "variance/student": 1.0,
        "time": 1.0,
    }
    for step in (1, 2, 3)
]
EVALUATION = {
    "step": 3,
    "eval_accuracy": 0.5,
    "eval_accuracy/color": 0.75,
    "eval_num_questions": 4,
    "train_seconds": 9.0,
}


def write_log(folder, entries, rest=""):
    folder.mkdir(parents=True)
    (folder / "log.jsonl").write_text("".join(f"{json.dumps(entry)}\n" for entry in entries) + rest)


def test_the_curves_are_the_values_of_the_log(tmp_path):
    _, curves = draw_stage([*ENTRIES, EVALUATION, {"step": 3, "train_runtime": 5.0}], "pretrain")
    assert curves["Loss and its terms"] == {
        "loss": ([1, 2, 3], [2.0, 1.0, 2 / 3]),
        "text": ([1, 2, 3], [1.0, 0.5, 1 / 3]),
        "fine/vit": ([1, 2, 3], [0.5] * 3),
    }
    assert curves["Accuracy"] == {"eval_accuracy": ([3], [0.5]), "eval_accuracy/color": ([3], [0.75])}
    assert list(curves["Load of teacher-specific adapters"]) == ["load/teacher/vit", "load/teacher/convnext"]
    assert set(curves) >= {"Learning rate", "Samples per second", "Evenness of the load"}
    assert "MFU" not in curves and "Load of general adapters" not in curves


def test_a_truncated_line_and_values_that_are_not_finite_are_left_out(tmp_path):
    write_log(tmp_path / "run", [*ENTRIES[:1], {"step": 2, "loss": float("nan")}], '{"step": 3, "lo')
    (entries,) = read_logs(tmp_path / "run").values()
    assert [entry["step"] for entry in entries] == [1, 2]
    assert find_curves(entries, lambda name: name == "loss") == {"loss": ([1], [2.0])}


def test_a_folder_that_is_no_run_is_one_sentence(tmp_path, capsys):
    for folder, problem in (
        (tmp_path / "absent", "there is no such folder"),
        (tmp_path, "no stage in it has a log.jsonl"),
    ):
        assert command.main(["plot", str(folder)]) == 2
        error = capsys.readouterr().err
        assert error == f"hawaii plot: {folder} is not a run of `hawaii train`: {problem}.\n"
    write_log(tmp_path / "pretrain", [], '{"ste')
    with pytest.raises(UserError, match="has no curves yet: nothing is logged in"):
        read_logs(tmp_path)


def test_a_run_has_a_figure_and_its_numbers_for_each_stage(tmp_path, teacher_folders, capsys):
    recipe = write_recipe(tmp_path, teacher_folders, max_steps=2)
    train(str(recipe), ["logging_steps=1"])
    assert command.main(["plot", str(tmp_path / "run")]) == 0
    for stage in ("pretrain", "finetune"):
        path = tmp_path / "run" / f"training_{stage}.png"
        assert Image.open(path).size[0] > 1000
        assert f"Figure: {path}" in capsys.readouterr().out or stage == "finetune"
        curves = json.loads(path.with_suffix(".json").read_text())
        assert [len(steps) for steps, _ in curves["Loss and its terms"].values()] == [2] * 7
        assert {"Load of teacher-specific adapters", "Load of general adapters"} <= set(curves)
    # One stage alone, into another folder.
    assert command.main(["plot", str(tmp_path / "run" / "finetune"), "--output_dir", str(tmp_path / "figures")]) == 0
    assert (tmp_path / "figures" / "training_finetune.png").is_file()
