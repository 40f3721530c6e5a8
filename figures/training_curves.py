"""`hawaii plot`: the curves of each stage of a run."""

from pathlib import Path

from ..drawing.curves import draw_stage
from ..drawing.style import matplotlib_or_error, save_figure
from ..files.run_contents import LOG_FILE
from ..files.user_error import UserError
from ..training.callbacks import read_log


def read_logs(run: Path) -> dict[str, list[dict]]:
    """
    Reads the logs of a run, in the order in which its stages trained.

    Args:
        run (`Path`):
            The `output_dir` of a recipe, of a finished or unfinished run, or the folder of one of its stages.

    Returns:
        `dict[str, list[dict]]`: The entries of each stage that has logged something.

    Raises:
        UserError: It is no run, or nothing is logged yet.
    """
    if not run.is_dir():
        raise UserError(f"{run} is not a run of `hawaii train`: there is no such folder.")
    paths = [run / LOG_FILE] if (run / LOG_FILE).is_file() else [*run.glob(f"*/{LOG_FILE}")]
    if not paths:
        raise UserError(f"{run} is not a run of `hawaii train`: no stage in it has a {LOG_FILE}.")
    logs = {
        path.parent.resolve().name: sorted(read_log(path), key=lambda entry: entry["step"])
        for path in sorted(paths, key=lambda path: path.stat().st_mtime)
    }
    logs = {stage: entries for stage, entries in logs.items() if entries}
    if not logs:
        raise UserError(f"{run} has no curves yet: nothing is logged in {paths[0]}; lower logging_steps or wait.")
    return logs


def plot_run(run: str | Path, output_dir: str | Path | None = None) -> None:
    """
    Draws the curves of each stage of a run, finished or not, as `training_STAGE.png` with their numbers.

    Args:
        run (`str` or `Path`):
            As for [`read_logs`].
        output_dir (`str` or `Path`, *optional*):
            Output folder; `run` if not given.

    Raises:
        UserError: It is no run, nothing is logged yet, or matplotlib is not installed.
    """
    matplotlib_or_error()
    logs = read_logs(Path(run))
    for stage, entries in logs.items():
        figure, curves = draw_stage(entries, stage)
        save_figure(figure, curves, Path(run if output_dir is None else output_dir), f"training_{stage}")
