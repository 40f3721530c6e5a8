"""`hawaii ablate`: trains every row of a table from every seed, evaluates the runs and compares the rows."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..configuration.configuration_hawaii import check_choice
from ..drawing.style import matplotlib_or_error
from ..evaluation.evaluate import check_call, split_tasks
from ..evaluation.paper.benchmarks import BENCHMARKS
from ..evaluation.paper.task_files import DATA_FILES, check_data_folder, find_data_files
from ..figures.learning_curves import draw_curves
from ..files.user_error import UserError, explain_errors
from ..training.recipes.recipe import Recipe, read_recipe
from .cluster import run_on_cluster
from .folder import AblationFolder
from .local import run_locally
from .matching import MATCHES, match_seconds
from .rows import DEFAULT_ROWS, Row, make_recipe, read_rows, rows_of
from .run import RECIPE_FILE, Run
from .table import make_table
from .tuning import check_grid, read_grid, tune


def _check_rows(names: Sequence[str], known: Mapping[str, Row], recipe: Recipe) -> None:
    """Validates the recipe of each row before anything is written."""
    if recipe.is_encoder_alone:
        raise UserError(
            "The recipe names no language model, so its models cannot answer questions: name a language_model, a "
            "text_config or a llava."
        )
    for name in ("num_teacher_adapters", "num_general_adapters"):
        if any((stage.model.vision_config or {}).get(name) == 0 for stage in recipe.stages.values()):
            raise UserError(f"The recipe has vision_config.{name} of 0, but the rows decide this: leave it out.")
    for name in names:
        if name not in known:
            raise UserError(f"There is no row {name!r}: with this recipe's teachers there are {', '.join(known)}.")
        make_recipe(recipe, known[name], 0, recipe.output_dir)


def _check_numbers(seeds: Sequence[int], jobs: int, devices_per_run: int) -> None:
    if twice := [seed for number, seed in enumerate(seeds) if seed in seeds[:number]]:
        raise UserError(f"--seeds names {twice[0]} twice.")
    if not seeds:
        raise UserError("--seeds names no seed; give at least one.")
    for option, value in (("jobs", jobs), ("devices_per_run", devices_per_run)):
        if value < 1:
            raise UserError(f"--{option} is {value}; it must be at least 1.")


def _find_data(
    tasks: Sequence[str], run_folder: Path, data_file: str | None, data_folder: str | None
) -> dict[str, str]:
    """Checks that tasks and data exist before hours of training."""
    if data_folder is not None:
        check_data_folder(tasks, Path(data_folder))
    files = find_data_files(tasks, run_folder, data_file)
    if others := [name for name in tasks if name not in BENCHMARKS and name not in DATA_FILES]:
        from ..evaluation.lmms.worker import TaskManager, check_task

        manager = TaskManager()
        for name in others:
            check_task(name, manager)
    paths = {"data_file": next(iter(files.values()), None), "data_folder": data_folder}
    return {name: str(Path(path).resolve()) for name, path in paths.items() if path is not None}


class Progress:
    """
    Reports each run that ended.

    Args:
        runs (`Sequence[Run]`):
            All requested runs.
        write_table (`Callable`, *optional*):
            Writes an early table when all rows of a seed are finished.
    """

    def __init__(self, runs: Sequence[Run], write_table: Callable[[], object] | None = None):
        self.runs, self.write_table = runs, write_table
        self.failures: dict[str, str] = {}

    def __call__(self, run: Run, error: BaseException | None) -> None:
        if error is not None and not run.is_done():
            self.failures[str(run)] = str(error) if isinstance(error, UserError | OSError) else repr(error)
            self._print(run, f"failed. {self.failures[str(run)]}")
            return
        try:
            if error is not None:
                raise error
            self._print(run, run.summary())
            if self.write_table and all(other.is_done() for other in self.runs if other.seed == run.seed):
                self.write_table()
        except Exception as problem:  # the run is finished; a full disk must not stop the others
            self._print(run, f"finished, but afterwards: {problem}")

    def _print(self, run: Run, text: str) -> None:
        num_ended = sum(run.is_done() for run in self.runs) + len(self.failures)
        print(f"{run}: {text} ({num_ended} of {len(self.runs)})", flush=True)

    def describe_failures(self) -> str:
        """A sentence about the runs that failed; empty if none did."""
        if not self.failures:
            return ""
        reasons = "; ".join(f"{run}: {reason}" for run, reason in self.failures.items())
        return (
            f"{len(self.failures)} of {len(self.runs)} runs failed, and the same command tries them again. {reasons}"
        )


@dataclass(frozen=True)
class Machines:
    """
    Where runs are executed.

    Args:
        jobs (`int`), cluster (`str`, *optional*), devices_per_run (`int`):
            As for [`ablate`].
        is_one_at_a_time (`bool`, *optional*, defaults to `False`):
            Whether a run waits for the one before it, with its share of the machine, so that runs do not slow each
            other down.
    """

    jobs: int
    cluster: str | None
    devices_per_run: int
    is_one_at_a_time: bool = False

    def execute(self, folder: AblationFolder, runs: list[Run], progress: Progress) -> None:
        """Executes those of a folder's runs that are not done."""
        waiting = []
        for run in runs:
            try:
                if run.is_done():
                    run.remove_large_files()  # if it was killed after writing its results
                else:
                    run.folder.mkdir(parents=True, exist_ok=True)
                    folder.make_recipe(run).save(run.folder / RECIPE_FILE)  # again: the folder may have been moved
                    waiting.append(run)
            except OSError as error:
                progress(run, error)
        groups = [[run] for run in waiting] if self.is_one_at_a_time else [waiting]
        for together in groups if waiting else ():
            if self.cluster is not None:
                run_on_cluster(together, self.cluster, self.jobs, self.devices_per_run, progress)
            else:
                run_locally(together, self.jobs, progress)

    def execute_all(self, folder: AblationFolder, runs: list[Run]) -> None:
        """Executes runs that others depend on; raises a `UserError` if one failed."""
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.prepare(runs)
        progress = Progress(runs)
        self.execute(folder, runs, progress)
        if failures := progress.describe_failures():
            raise UserError(failures)


def _show(ablation: dict, folder: Path) -> None:
    """Prints the table and draws the curves."""
    print(f"\n{make_table(ablation)}\n\nTable: {folder / 'ablation.md'}\nNumbers: {folder / 'ablation.json'}")
    curves = {row["label"]: row["curve"] for row in ablation["rows"] if row["curve"]}
    if curves:
        draw_curves(curves, folder)
    else:
        print("No learning curves: the recipe does not evaluate during training (eval_data_path, eval_strategy).")


def ablate(
    recipe: str,
    tasks: str | None = None,
    output_dir: str | Path | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    rows: Sequence[str] = DEFAULT_ROWS,
    more_rows: str | Path | None = None,
    grid: Sequence[str] = (),
    match: str = "steps",
    baseline: str = "llava",
    jobs: int = 1,
    launcher: str | None = None,
    cluster: str | None = None,
    devices_per_run: int = 1,
    limit: int | None = None,
    batch_size: int | None = None,
    data_file: str | None = None,
    data_folder: str | None = None,
    overrides: list[str] | None = None,
) -> None:
    """
    Trains a recipe once for each row and seed, evaluates the runs and compares the rows. Finished runs are skipped and
    interrupted runs continue.

    Writes to `output_dir`: the table `ablation.md` and all numbers `ablation.json`, as soon as all rows of one seed
    are finished; learning curves, if the recipe evaluates during training; and a folder `runs/ROW/seed-N` per run.

    Args:
        recipe (`str`):
            A YAML file or the name of a built-in recipe. Its `output_dir` contains the data.
        tasks (`str`, *optional*):
            Tasks of lmms-eval or of this package, separated by commas; the recipe's `eval_tasks` if not given.
        output_dir (`str` or `Path`, *optional*):
            Folder of the ablation; `ablation` in the recipe's `output_dir` if not given.
        seeds (`Sequence[int]`, *optional*, defaults to `(0, 1, 2)`):
            Seeds of each row. All rows are trained from the first seed before any from the second.
        rows (`Sequence[str]`, *optional*, defaults to `DEFAULT_ROWS`):
            Rows of the table; see `ROWS`, and `only_TEACHER` for each teacher of the recipe.
        more_rows (`str` or `Path`, *optional*):
            YAML file of further rows, see [`read_rows`].
        grid (`Sequence[str]`, *optional*):
            Settings, each `key=value` or several with spaces between them. Each row is trained with each of them, and
            gets those with which it answers most validation questions, see [`tune`].
        match (`str`, *optional*, defaults to `"steps"`):
            What is equal for all rows: `steps`, `seconds`, or `student_seconds`, without those of the teachers; see
            [`match_seconds`].
        baseline (`str`, *optional*, defaults to `"llava"`):
            Row that others are compared with.
        jobs (`int`, *optional*, defaults to 1):
            Number of runs at once, which share the cores and CUDA devices.
        launcher (`str`, *optional*):
            Command that starts training on several devices, such as `accelerate launch --num_processes 8`.
        cluster (`str`, *optional*):
            Address of a Ray cluster that executes the runs, see [`run_on_cluster`]; this machine if not given.
        devices_per_run (`int`, *optional*, defaults to 1):
            GPUs of each run on a cluster.
        limit, batch_size, data_file, data_folder (*optional*):
            As for [`evaluate`]; `data_file` defaults to the one in the recipe's `output_dir`.
        overrides (`list[str]`, *optional*):
            `key=value` or `stages.NAME.key=value`, for all rows; the options of a row take precedence.

    Raises:
        UserError: an argument is invalid, before anything is executed; or runs failed, after all have ended.
    """
    if "LOCAL_RANK" in os.environ:
        raise UserError(
            "`hawaii ablate` was started by a launcher, which starts several processes: start it alone, with "
            "--launcher for its trainings."
        )
    read = read_recipe(recipe, overrides, use_cpu=True)
    known = rows_of(next(iter(read.stages.values())).teachers)
    if more_rows is not None:
        known |= read_rows(more_rows, known, read.output_dir)
    with explain_errors():
        check_choice("--match", match, MATCHES)
    points = read_grid(grid)
    _check_rows(rows, known, read)
    task_names = read.eval_tasks if tasks is None else split_tasks(tasks)
    if not task_names:
        raise UserError(f"{recipe} names no eval_tasks for the finished models: add them, or give --tasks.")
    _check_numbers(seeds, jobs, devices_per_run)
    check_call(task_names, limit, batch_size)
    data = _find_data(task_names, read.output_dir, data_file, data_folder)
    if any(stage.data.eval_data_path for stage in read.stages.values()):
        matplotlib_or_error()

    evaluation = {"tasks": task_names, **({} if limit is None else {"limit": limit}), **data}
    path = Path(read.output_dir / "ablation" if output_dir is None else output_dir).resolve()
    folder = AblationFolder(path, read, known, evaluation, batch_size, launcher)
    machines = Machines(jobs, cluster, devices_per_run)
    # All rows of one seed before the next seed, so that an early table is fair.
    requested = [name for name in known if name in rows]
    runs = [folder.make_run(name, seed) for seed in seeds for name in requested]
    # With the rows of earlier commands, whose settings are the same again.
    chosen = {run.row for run in folder.with_finished_runs(runs)}
    if baseline not in chosen:
        raise UserError(f"The baseline {baseline!r} is not one of the rows: name another, or add it to --rows.")
    names = [name for name in known if name in chosen]
    check_grid(folder, names, points)
    with folder.locked():
        folder.check_settings()  # before rows are timed or tuned
        if match != "steps":
            alone = replace(machines, is_one_at_a_time=True)
            folder = replace(folder, rows=match_seconds(folder, names, match, alone.execute_all))
        if points:
            folder = replace(folder, rows=tune(folder, names, points, machines.execute_all))
        folder.prepare(runs)
        _execute(folder, runs, baseline, machines)


def _execute(folder: AblationFolder, runs: list[Run], baseline: str, machines: Machines) -> None:
    progress = Progress(runs, lambda: folder.write_table(runs, baseline))
    machines.execute(folder, runs, progress)
    failures, cause = progress.describe_failures(), None
    problems = [failures] if failures else []
    try:
        ablation = folder.write_table(runs, baseline)
        if ablation is not None:
            _show(ablation, folder.path)
    except (OSError, UserError) as error:
        if not problems and isinstance(error, UserError):
            raise
        cause = error
        problems.append(f"The table and the curves could not all be written: {error}")
    if problems:
        raise UserError(" ".join(problems)) from cause
