"""Evaluates a checkpoint on tasks of lmms-eval and saves the scores."""

import math
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

from ..files.atomic import read_json, write_json, write_text
from ..files.run_contents import FACTS_FILE, HUB_FOLDER, RESULTS_FILE
from ..files.user_error import UserError
from ..hub_cards.card import add_results
from .checkpoint import checkpoint_folder, count_parameters
from .lmms.process import run_lmms_eval
from .paper.benchmarks import BENCHMARKS, SUITES
from .paper.questions import DATA_FOLDER
from .paper.results import average, paper_report, paper_scores
from .paper.task_files import check_data_folder, find_data_files, write_task_files
from .report import report


# Imports of lmms-eval for the tasks of this package, for an installation without its two gigabytes of requirements.
LMMS_EVAL_NEEDS = ("evaluate", "loguru", "pandas", "pydantic", "pytablewriter", "pytz", "sacrebleu", "tenacity")


def card_results(scores: dict[str, dict], in_table: dict[str, float]) -> list[dict]:
    """
    Returns the scores for the model card: the paper's number for a benchmark of the paper, and every number of another
    task, without the scores by question type. A score that is not finite is left out: the Hub reads numbers.
    """
    results = []
    for task, values in scores.items():
        row = {"task": task, "num_questions": values.get("num_questions", "")}
        if task in in_table:
            benchmark = BENCHMARKS[task]
            row |= {"data_set": benchmark.data_set, "repository": benchmark.repository, "config": benchmark.config}
            row |= {"split": benchmark.split, "metric": benchmark.metric_type, "value": round(in_table[task], 2)}
            results.append(row)
            continue
        metrics = {name: value for name, value in values.items() if name != "num_questions"}
        results += [
            {**row, "metric": name, "value": round(value, 4)}
            for name, value in metrics.items()
            if isinstance(value, int | float)
        ]
    return [result for result in results if math.isfinite(result["value"])]


def split_tasks(tasks: str | list[str]) -> list[str]:
    """
    Splits a string of comma-separated task names.

    Raises:
        UserError: A task is listed twice.
    """
    names = [name.strip() for name in tasks.split(",")] if isinstance(tasks, str) else list(tasks)
    if duplicates := [name for name in names if names.count(name) > 1]:
        raise UserError(f"The tasks list {duplicates[0]} twice; remove one.")
    return names


def task_names(tasks: str | list[str] | None, suite: str | None) -> list[str]:
    """
    Returns the names of the requested tasks.

    Raises:
        UserError: Not exactly one of `tasks` and `suite` is given, the suite is unknown, or a task is listed twice.
    """
    if (tasks is None) == (suite is None):
        raise UserError("Give either --tasks or --suite.")
    if suite is None:
        return split_tasks(tasks)
    if suite not in SUITES:
        raise UserError(f"There is no suite {suite!r}; choose {', '.join(SUITES)}.")
    return list(SUITES[suite])


def check_call(
    names: list[str],
    limit: int | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    num_processes: int = 1,
) -> None:
    """
    Checks the options of an evaluation before anything slow starts.

    Raises:
        UserError: lmms-eval is not installed, or an option has an invalid value.
    """
    if missing := [name for name in ("lmms_eval", *LMMS_EVAL_NEEDS) if find_spec(name) is None]:
        raise UserError(
            f"Evaluation needs {', '.join(missing)}: pip install lmms-eval==0.7.3 installs everything. For the tasks "
            "of this package, pip install 'hawaii-vlm[demo]' and pip install --no-deps lmms-eval==0.7.3 are enough."
        )
    if num_processes < 1:
        raise UserError(f"--num_processes is {num_processes}, but must be at least 1.")
    if num_processes > 1 and device not in (None, "cpu"):
        raise UserError(
            f"--device {device} is one device, but {num_processes} processes use one each; remove --device."
        )
    for option, number in (("limit", limit), ("batch_size", batch_size)):
        if number is not None and number < 1:
            raise UserError(f"--{option} is {number}, but must be at least 1.")
    if limit is not None and limit % 2 and "mme" in names:
        raise UserError(f"mme scores questions in pairs, and --limit {limit} splits a pair; give an even number.")


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
    trust_remote_code: bool = False,
) -> dict:
    """
    Evaluates a checkpoint with lmms-eval in new processes. Prints the scores and writes `output_dir/results.json`.

    It also writes the answers to `output_dir/samples_TASK.jsonl` and the output of lmms-eval to
    `output_dir/evaluate.log`. If the tasks include benchmarks of the paper, `output_dir/results.md` compares them with
    the paper's Table 1. The scores are added to the model card of a folder that this package has trained, except with
    `limit`; see [`add_results`].

    Args:
        folder (`str`):
            A published folder, or a LLaVA or another image-text-to-text model of transformers, local or on the Hub.
        output_dir (`str` or `Path`):
            Folder for the results. The results of `output_dir/hub` include the training statistics in
            `output_dir/train_results.json`.
        tasks (`str` or `list[str]`, *optional*):
            Tasks of lmms-eval or of this package; a string is split at commas. The paper's ten benchmarks use the
            prompts of LLaVA-1.5.
        suite (`str`, *optional*):
            `"paper"` in place of `tasks`: the paper's ten benchmarks.
        limit (`int`, *optional*):
            Number of questions per task; defaults to all.
        batch_size (`int`, *optional*, defaults to 64):
            Questions per batch, halved when the device is out of memory.
        data_file (`str`, *optional*):
            Parquet file with the questions of a task of this package; defaults to `output_dir/data/test.parquet`.
        data_folder (`str`, *optional*):
            Folder with the data of the paper's benchmarks, used instead of the Hub: one folder per task, written by
            `DatasetDict.save_to_disk`.
        num_processes (`int`, *optional*, defaults to 1):
            Number of processes. Each uses one device, loads the complete model and answers its share of the questions.
        device (`str`, *optional*):
            Device such as `"cuda:1"`; defaults to the first accelerator, or the CPU.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Type of the weights; `"auto"` is that of the checkpoint.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run code contained in a checkpoint that is not a HAWAII.

    Returns:
        `dict`: The content of `results.json`.

    Raises:
        UserError: `folder` is not a checkpoint, the questions of a task are missing, lmms-eval is not installed, or
            answering or scoring failed.
    """
    names = task_names(tasks, suite)
    checkpoint = checkpoint_folder(folder, trust_remote_code=trust_remote_code)
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
    print(f"Evaluating {folder} on {', '.join(names)}; lmms-eval takes a few seconds to start.", flush=True)
    with tempfile.TemporaryDirectory(prefix="evaluate-", dir=output_dir) as scratch:
        scratch = Path(scratch).resolve()
        plan = {
            "pretrained": str(checkpoint.resolve()),
            "dtype": dtype,
            "device": device,
            "batch_size": batch_size,
            "trust_remote_code": trust_remote_code,
            "limit": limit,
            "tasks": names,
            "task_folder": str(write_task_files(names, data_files, benchmark_data, scratch)),
        }
        scores = run_lmms_eval(plan, output_dir, scratch, num_processes, environment)

    in_table = paper_scores(scores)
    statistics = output_dir / RESULTS_FILE
    is_trained_here = checkpoint.resolve() == (output_dir / HUB_FOLDER).resolve() and statistics.is_file()
    results = {
        **(read_json(statistics) if is_trained_here else {}),
        "folder": str(folder),
        "task": ",".join(names),
        "limit": limit,
        **(scores[names[0]] if len(names) == 1 and list(scores) == names else {}),
        "tasks": scores,
        **({"paper_scores": in_table, "paper_average": average(in_table)} if in_table else {}),
        "num_parameters": count_parameters(checkpoint),
        "evaluate_seconds": round(time.monotonic() - start, 1),
    }
    # An earlier evaluation may have left a table.
    (output_dir / "results.md").unlink(missing_ok=True)
    write_json(output_dir / "results.json", results)
    if in_table:
        write_text(output_dir / "results.md", paper_report(results))
    if (Path(folder) / FACTS_FILE).is_file() and limit is None:
        add_results(Path(folder), card_results(scores, in_table))
    print(report(results, output_dir))
    return results
