"""Runs tasks of lmms-eval on a checkpoint and keeps the scores."""

import json
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

from ..files.atomic import write_json, write_text
from ..files.run_contents import FACTS_FILE, HUB_FOLDER
from ..files.user_error import UserError
from ..hub_cards.card import write_card
from .checkpoint import checkpoint_folder, count_parameters
from .lmms.process import run_lmms_eval
from .paper.benchmarks import BENCHMARKS, SUITES
from .paper.questions import DATA_FOLDER
from .paper.results import average, paper_report, paper_scores
from .paper.task_files import check_data_folder, find_data_files, write_task_files
from .report import report


# What lmms-eval imports for the tasks here, where it was installed without the two gigabytes of its requirements.
LMMS_EVAL_NEEDS = ("evaluate", "loguru", "pandas", "pydantic", "pytablewriter", "pytz", "sacrebleu", "tenacity")


def card_results(scores: dict[str, dict], in_table: dict[str, float]) -> list[dict]:
    """
    What of the scores a model card states: of a benchmark of the paper the paper's number, of another task its own
    numbers, not their parts.
    """
    results = []
    for task, values in scores.items():
        row = {"task": task, "num_questions": values.get("num_questions", "")}
        if task in in_table:
            benchmark = BENCHMARKS[task]
            row |= {"data_set": benchmark.data_set, "repository": benchmark.repository, "config": benchmark.config}
            row |= {"split": benchmark.split, "metric": benchmark.kind, "value": round(in_table[task], 2)}
            results.append(row)
            continue
        metrics = {name: value for name, value in values.items() if name != "num_questions"}
        results += [
            {**row, "metric": name, "value": round(value, 4)}
            for name, value in metrics.items()
            if isinstance(value, int | float)
        ]
    return results


def split_tasks(tasks: str | list[str]) -> list[str]:
    """
    The names of tasks, with commas between them if a string.

    Raises:
        ValueError: one stands there twice.
    """
    names = [name.strip() for name in tasks.split(",")] if isinstance(tasks, str) else list(tasks)
    if twice := [name for number, name in enumerate(names) if name in names[:number]]:
        raise UserError(f"The tasks name {twice[0]} twice.")
    return names


def task_names(tasks: str | list[str] | None, suite: str | None) -> list[str]:
    """
    The tasks that are asked for, each once.

    Raises:
        ValueError: none, both of `tasks` and `suite`, no such suite, or a task twice.
    """
    if (tasks is None) == (suite is None):
        raise UserError("An evaluation is of --tasks or of a --suite: name one of the two.")
    if suite is None:
        return split_tasks(tasks)
    if suite not in SUITES:
        raise UserError(f"There is no suite {suite!r}, only {', '.join(SUITES)}.")
    return list(SUITES[suite])


def check_call(
    names: list[str],
    limit: int | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    num_processes: int = 1,
) -> None:
    """
    Says what is wrong with an evaluation before anything slow begins.

    Raises:
        ValueError: lmms-eval is not installed, or a number makes no sense.
    """
    if missing := [name for name in ("lmms_eval", *LMMS_EVAL_NEEDS) if find_spec(name) is None]:
        raise UserError(
            f"Evaluation needs {', '.join(missing)}: pip install lmms-eval==0.7.3 brings everything; for the tasks of "
            "this package pip install 'hawaii-vlm[demo]' and pip install --no-deps lmms-eval==0.7.3 are enough."
        )
    if num_processes < 1:
        raise UserError(f"--num_processes is {num_processes}, but an evaluation needs one at least.")
    if num_processes > 1 and device not in (None, "cpu"):
        raise UserError(
            f"--device {device} is one device, but each of {num_processes} processes takes its own: leave it out."
        )
    for option, number in (("limit", limit), ("batch_size", batch_size)):
        if number is not None and number < 1:
            raise UserError(f"--{option} is {number}, but one question is the least.")
    if limit is not None and limit % 2 and "mme" in names:
        raise UserError(f"mme scores its questions in pairs, and --limit {limit} cuts one: give an even number.")


def _read_training(output_dir: Path, checkpoint: Path) -> dict:
    path = output_dir / "train_results.json"
    is_its_own = checkpoint.resolve() == (output_dir / HUB_FOLDER).resolve()
    return json.loads(path.read_text(encoding="utf-8")) if is_its_own and path.is_file() else {}


def evaluate(
    folder: str,
    output_dir: str | Path,
    tasks: str | list[str] | None = None,
    suite: str | None = None,
    limit: int | None = None,
    batch_size: int = 64,
    data_file: str | None = None,
    data_folder: str | None = None,
    num_processes: int = 1,
    device: str | None = None,
    dtype: str = "auto",
) -> dict:
    """
    Answers questions with a checkpoint through lmms-eval, in processes of its own, writes `output_dir/results.json`
    and prints the scores. The answers are left in `output_dir/samples_TASK.jsonl` and what lmms-eval says in
    `output_dir/evaluate.log`. Where benchmarks of the paper are asked, `output_dir/results.md` holds them beside
    the rows of its Table 1. The model card of a folder of this package then states the scores, unless only some
    questions were asked.

    Args:
        folder (`str`):
            A published folder, a LLaVA or another image-text-to-text model of transformers', or a name on the Hub.
        output_dir (`str` or `Path`):
            Where the results go; `output_dir/hub` also gets what `train_results.json` there says of its training.
        tasks (`str` or `list[str]`, *optional*):
            Names of lmms-eval's tasks or of this package's, with commas between them if a string. The paper's ten
            benchmarks are asked as LLaVA-1.5 asks them.
        suite (`str`, *optional*):
            `"paper"` in place of `tasks`: the paper's ten benchmarks.
        limit (`int`, *optional*):
            Ask only the first questions of each task.
        batch_size (`int`, *optional*, defaults to 64):
            Questions answered at once; halved where a device's memory does not bear it.
        data_file (`str`, *optional*):
            Parquet file with the questions of a task of this package; defaults to `output_dir/data/test.parquet`.
        data_folder (`str`, *optional*):
            Holds the data of the paper's benchmarks, each under its task's name as `DatasetDict.save_to_disk` leaves
            it, in place of the Hub.
        num_processes (`int`, *optional*, defaults to 1):
            Each takes one device, holds the whole model and answers its share of the questions.
        device (`str`, *optional*):
            Such as `"cuda:1"`; defaults to the first accelerator, or the CPU.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Of the weights; `"auto"` is the checkpoint's own.

    Returns:
        `dict`: what `results.json` holds.

    Raises:
        ValueError: `folder` is no checkpoint, the questions of a task are missing, lmms-eval is not installed, or an
            error in answering or scoring.
    """
    names = task_names(tasks, suite)
    checkpoint = checkpoint_folder(folder)
    output_dir = Path(output_dir)
    data_files = find_data_files(names, output_dir, data_file)
    check_call(names, limit, batch_size, device, num_processes)
    benchmark_data = None if data_folder is None else Path(data_folder)
    if benchmark_data is not None:
        check_data_folder(names, benchmark_data)
    environment = {DATA_FOLDER: "" if benchmark_data is None else str(benchmark_data.resolve())}
    if data_folder is not None or names == list(data_files):
        environment["HF_HUB_OFFLINE"] = "1"
    output_dir.mkdir(parents=True, exist_ok=True)

    start = time.monotonic()
    print(f"Evaluating {folder} on {', '.join(names)}; lmms-eval takes some seconds to start.", flush=True)
    with tempfile.TemporaryDirectory(prefix="evaluate-", dir=output_dir) as scratch:
        scratch = Path(scratch).resolve()
        plan = {
            "pretrained": str(checkpoint.resolve()),
            "dtype": dtype,
            "device": device,
            "batch_size": batch_size,
            "limit": limit,
            "tasks": names,
            "task_folder": str(write_task_files(names, data_files, benchmark_data, scratch)),
        }
        scores = run_lmms_eval(plan, output_dir, scratch, num_processes, environment)

    in_table = paper_scores(scores)
    results = {
        **_read_training(output_dir, checkpoint),
        "folder": str(folder),
        "task": ",".join(names),
        "limit": limit,
        **(scores[names[0]] if len(names) == 1 and list(scores) == names else {}),
        "tasks": scores,
        **({"paper_scores": in_table, "paper_average": average(in_table)} if in_table else {}),
        "num_parameters": count_parameters(checkpoint),
        "evaluate_seconds": round(time.monotonic() - start, 1),
    }
    # Of an earlier evaluation, it would stand beside this one's results.
    (output_dir / "results.md").unlink(missing_ok=True)
    write_json(output_dir / "results.json", results)
    if in_table:
        write_text(output_dir / "results.md", paper_report(results))
    if (Path(folder) / FACTS_FILE).is_file() and limit is None:
        write_card(Path(folder), card_results(scores, in_table))
    print(report(results, output_dir))
    return results
