"""`hawaii ablate`: does each part help, on this data? Every row trained from every seed, evaluated, and compared."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..evaluation.evaluate import check_call, split_tasks
from ..evaluation.paper.benchmarks import BENCHMARKS
from ..evaluation.paper.task_files import DATA_FILES, check_data_folder, find_data_files
from ..figures.drawing import matplotlib_or_error
from ..figures.learning_curves import draw_curves
from ..files.user_error import UserError
from ..training.recipes.arguments import names_encoder_alone
from ..training.recipes.recipe import read_recipe
from .claim import Claim
from .folder import CLAIM_FILE, AblationFolder
from .places import count_cores, leave_group, make_places, visible_devices
from .rows import DEFAULT_ROWS, Row, make_recipe, rows_of, write_recipe
from .run import Run
from .schedule import Schedule
from .table import make_table


def _check_rows(names: Sequence[str], known: Mapping[str, Row], stages: dict[str, dict]) -> None:
    """Reads each row's recipe as training will, before anything is written."""
    if names_encoder_alone(next(iter(stages.values()))):
        raise UserError(
            "The recipe names no language model, so nothing that it trains could be asked: name a language_model, a "
            "text_config or a llava."
        )
    for name in ("num_teacher_adapters", "num_general_adapters"):
        if any((options.get("vision_config") or {}).get(name) == 0 for options in stages.values()):
            raise UserError(
                f"The recipe has vision_config.{name} of 0, but that is for the rows to say: leave it out."
            )
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            if name not in known:
                raise UserError(f"There is no row {name!r}: with this recipe's teachers there are {', '.join(known)}.")
            write_recipe(Path(folder) / "recipe.yaml", make_recipe(stages, known[name], 0, Path(folder) / "run"))


def _check_numbers(seeds: Sequence[int], jobs: int) -> None:
    if twice := [seed for number, seed in enumerate(seeds) if seed in seeds[:number]]:
        raise UserError(f"--seeds names {twice[0]} twice.")
    if not seeds:
        raise UserError("--seeds names none; one is the least.")
    if jobs < 1:
        raise UserError(f"--jobs is {jobs}, but one run at once is the least.")


def _take_tasks(tasks: str | None, recipe: str, stages: Mapping[str, dict]) -> list[str]:
    """What the finished models are asked. It is taken out of the recipe, for it changes nothing in their training."""
    own = {options.pop("eval_tasks", None) for options in stages.values()}
    if tasks is None and len(own) > 1:
        raise UserError(f"{recipe} has eval_tasks for some stages: it is of the finished model, so give it to all.")
    tasks = own.pop() if tasks is None else tasks
    if tasks is None:
        raise UserError(f"{recipe} names no eval_tasks for the finished models: add it, or give --tasks.")
    return split_tasks(str(tasks))


def _find_data(
    names: Sequence[str], recipe_folder: Path, data_file: str | None, data_folder: str | None
) -> dict[str, str]:
    """Finds tasks and data that are not there before hours are spent on what they should be asked of."""
    if data_folder is not None:
        check_data_folder(names, Path(data_folder))
    files = find_data_files(names, recipe_folder, data_file)
    if strange := [name for name in names if name not in BENCHMARKS and name not in DATA_FILES]:
        from ..evaluation.lmms.worker import TaskManager, check_task

        manager = TaskManager()
        for name in strange:
            check_task(name, manager)
    paths = {"data_file": next(iter(files.values()), None), "data_folder": data_folder}
    return {name: str(Path(path).resolve()) for name, path in paths.items() if path is not None}


def _tell(ablation: dict, folder: Path) -> None:
    """Prints the table and draws the curves."""
    print(f"\n{make_table(ablation)}\n\nThe table: {folder / 'ablation.md'}\nAll numbers: {folder / 'ablation.json'}")
    curves = {row["label"]: row["curve"] for row in ablation["rows"] if row["curve"]}
    if curves:
        with Claim(folder / CLAIM_FILE):  # several commands may end at the same time
            draw_curves(curves, folder)
    else:
        print("No learning curves: the recipe asks no questions while it trains (eval_data_path and eval_strategy).")


def ablate(
    recipe: str,
    tasks: str | None = None,
    output_dir: str | Path | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    rows: Sequence[str] = DEFAULT_ROWS,
    baseline: str = "llava",
    jobs: int = 1,
    launcher: str | None = None,
    limit: int | None = None,
    batch_size: int | None = None,
    data_file: str | None = None,
    data_folder: str | None = None,
    overrides: list[str] | None = None,
) -> None:
    """
    Trains a recipe once for each row and seed, evaluates each, and writes what they come to. What is done is skipped,
    what was interrupted goes on. Any number of processes may work in one folder at once.

    Leaves, under `output_dir`: `ablation.md`, the table, and `ablation.json`, all numbers, as soon as all rows are
    done from one seed; learning curves, if the recipe asks questions while it trains; and `runs/ROW/seed-N` for each
    run.

    Args:
        recipe (`str`):
            The YAML file. Its own `output_dir` is where `${output_dir}` in it leads: to data, not to the runs.
        tasks (`str`, *optional*):
            Names of lmms-eval's tasks or of this package's, with commas between them; the recipe's `eval_tasks` if not
            given.
        output_dir (`str` or `Path`, *optional*):
            Of the ablation; `ablation` in the recipe's own if not given.
        seeds (`Sequence[int]`, *optional*, defaults to `(0, 1, 2)`):
            Each row is trained from each; every row from the first before any from the second.
        rows (`Sequence[str]`, *optional*, defaults to `DEFAULT_ROWS`):
            What is compared; see `ROWS`, and `only_TEACHER` for each teacher of the recipe.
        baseline (`str`, *optional*, defaults to `"llava"`):
            The row that others are compared with.
        jobs (`int`, *optional*, defaults to 1):
            Runs at once, each with its share of the cores and CUDA devices.
        launcher (`str`, *optional*):
            Command that starts training on several devices, such as `accelerate launch --num_processes 8`.
        limit, batch_size, data_file, data_folder (*optional*):
            As for [`evaluate`]; `data_file` defaults to the one in the recipe's own `output_dir`.
        overrides (`list[str]`, *optional*):
            `key=value` or `stages.NAME.key=value`, for all rows; what makes a row is the row's to say.

    Raises:
        ValueError: something does not exist or does not fit, before anything is run; or, when all is over, that runs
            failed, and which.
    """
    rank = leave_group(os.environ)
    stages = read_recipe(recipe, overrides)
    first = next(iter(stages.values()))
    known = rows_of(first.get("teachers"))
    _check_rows(rows, known, stages)
    names = _take_tasks(tasks, recipe, stages)
    _check_numbers(seeds, jobs)
    check_call(names, limit, batch_size)
    data = _find_data(names, Path(first["output_dir"]), data_file, data_folder)
    if any(options.get("eval_data_path") for options in stages.values()):
        matplotlib_or_error()

    evaluation = {"tasks": names, **({} if limit is None else {"limit": limit}), **data}
    path = Path(first["output_dir"], "ablation") if output_dir is None else Path(output_dir)
    folder = AblationFolder(path, Path(recipe), stages, known, evaluation, batch_size, launcher)
    # All rows from one seed before any from the next, so that an early table is fair.
    runs = [folder.make_run(name, seed) for seed in seeds for name in known if name in rows]
    if baseline not in {run.row for run in folder.with_those_done(runs)}:
        raise UserError(f"The baseline {baseline!r} is none of the rows: name another, or add it to --rows.")
    folder.claim_settings(runs)

    def write_early_table(run: Run) -> None:
        if all(other.is_done() for other in runs if other.seed == run.seed):
            folder.write_table(runs, baseline)

    places = make_places(os.environ, visible_devices(os.environ), count_cores(), rank, jobs, launcher is not None)
    failures = Schedule(runs, places, write_early_table).run()
    # Of several that one launcher started, the first tells; it would be ended with another that fails before it.
    if rank.everywhere > 0:
        return
    problems, cause = [], None
    if failures:
        said = "; ".join(f"{run}: {reason}" for run, reason in failures.items())
        problems.append(f"{len(failures)} of {len(runs)} runs failed, and the same command tries them again. {said}")
    try:
        ablation = folder.write_table(runs, baseline)
        if ablation is not None:
            _tell(ablation, folder.path)
    except (OSError, ValueError) as error:
        if not failures and isinstance(error, ValueError):
            raise
        cause = error
        problems.append(f"Not all of the table and the curves could be written: {error}")
    if problems:
        raise UserError(" ".join(problems)) from cause
