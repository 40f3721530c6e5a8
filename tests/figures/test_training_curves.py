"""`hawaii plot` draws what a run has logged, also of an interrupted one."""

import json

import pytest
from PIL import Image

from hawaii import __main__ as command
from hawaii.figures.training_curves import read_logs
from hawaii.files.user_error import UserError
from hawaii.tests.tiny.training import write_recipe
from hawaii.tests.training_log import ENTRIES
from hawaii.training.train import train


def write_log(folder, entries, rest=""):
    folder.mkdir(parents=True)
    (folder / "log.jsonl").write_text("".join(f"{json.dumps(entry)}\n" for entry in entries) + rest)


def test_a_truncated_line_is_left_out(tmp_path):
    write_log(tmp_path / "run", ENTRIES[:2], '{"step": 3, "lo')
    (entries,) = read_logs(tmp_path / "run").values()
    assert [entry["step"] for entry in entries] == [1, 2]


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
