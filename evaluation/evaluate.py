"""Runs tasks of lmms-eval on a checkpoint and keeps the scores."""

import codecs
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from ..hub_cards.card import FACTS_FILE, write_card
from ..hub_cards.folders import write_json
from .checkpoint import checkpoint_folder, count_parameters
from .report import report


TASKS = Path(__file__).parent / "tasks"
# Tasks of this package, and their data under the output directory.
DATA_FILES = {"easy_vqa": "data/test.parquet"}
COLOR = re.compile(r"\x1b\[[0-9;]*m")


def card_results(scores: dict[str, dict]) -> list[dict]:
    """What of the scores a model card states: each task's own numbers, not their parts."""
    return [
        {"task": task, "metric": metric, "value": round(value, 4), "num_questions": values.get("num_questions", "")}
        for task, values in scores.items()
        for metric, value in values.items()
        if metric != "num_questions" and isinstance(value, int | float)
    ]


def _data_files(names: list[str], output_dir: Path, data_file: str | None) -> dict[str, Path]:
    """The questions of each task of this package that is asked for."""
    files = {name: Path(data_file or output_dir / DATA_FILES[name]) for name in names if name in DATA_FILES}
    for name, path in files.items():
        if data_file is not None and not path.is_file():
            raise ValueError(f"{name} has no questions: there is no {path}.")
        if not path.is_file():
            raise ValueError(
                f"{name} has no questions: there is no {path}. "
                f"`hawaii data {name} --output_dir {output_dir}` makes it; --data_file names one elsewhere."
            )
    return files


def _write_tasks(data_files: dict[str, Path], scratch: Path) -> None:
    """Writes, for each task of this package, a task that includes the packaged one and names its data."""
    (scratch / "tasks").mkdir()
    for name, path in data_files.items():
        task = {
            "task": name,
            "include": str(TASKS / name / f"{name}.yaml"),
            # datasets keeps a copy of what it reads: here, where it goes away with the folder.
            "dataset_kwargs": {"data_files": {"test": str(path.resolve())}, "cache_dir": str(scratch / "datasets")},
        }
        (scratch / "tasks" / f"{name}.yaml").write_text(yaml.safe_dump(task))


def _command(
    checkpoint: Path,
    names: list[str],
    scratch: Path,
    limit: int | None,
    batch_size: int,
    device: str | None,
    dtype: str,
) -> list[str]:
    command = [sys.executable, "-m", "lmms_eval", "--model", "hawaii", "--tasks", ",".join(names)]
    command += ["--model_args", f"pretrained={checkpoint.resolve()},dtype={dtype}", "--batch_size", str(batch_size)]
    command += ["--include_path", str(scratch / "tasks"), "--output_path", str(scratch / "results"), "--log_samples"]
    command += ["--limit", str(limit)] if limit is not None else []
    command += ["--device", device] if device else []
    return command


def _run(command: list[str], log_path: Path, scratch: Path, is_offline: bool) -> int:
    """Runs a command; its errors and progress are shown as they come, all it says goes to the log."""
    # lmms-eval logs to stdout, which only the log keeps; stderr has the progress bars, warnings and tracebacks. It
    # runs in a folder of its own: a user's datasets.py in the current one must not hide the library.
    environment = {**os.environ, "LOGURU_LEVEL": "WARNING"}
    if is_offline:
        environment["HF_HUB_OFFLINE"] = "1"
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    with open(log_path, "wb", buffering=0) as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.PIPE, env=environment, cwd=scratch)
        try:
            # Not by lines: a progress bar ends none.
            while chunk := os.read(process.stderr.fileno(), 65536):
                log.write(chunk)
                sys.stderr.write(decoder.decode(chunk))
                sys.stderr.flush()
        except BaseException:
            process.kill()
            raise
        finally:
            exit_code = process.wait()
            process.stderr.close()
    return exit_code


def _metrics(result: dict) -> dict:
    """`{"accuracy,none": 0.5, "accuracy_stderr,none": 0.1, "alias": "x"}` -> `{"accuracy": 0.5}`."""
    # A benchmark that scores on its own server has no number here, but a file to hand in.
    metrics = {name.removesuffix(",none"): value for name, value in result.items() if "_stderr" not in name}
    return {name: value for name, value in metrics.items() if isinstance(value, int | float | dict)}


def _last_line(log_path: Path) -> str:
    lines = COLOR.sub("", log_path.read_bytes().decode(errors="replace")).split("\n")
    # A progress bar rewrites its line; what it showed last is enough.
    lines = [line.rstrip("\r").rsplit("\r", 1)[-1] for line in lines if line.strip()]
    return lines[-1] if lines else "nothing"


def _read_scores(folder: Path, names: list[str], log_path: Path, exit_code: int) -> dict[str, dict]:
    """
    Reads what lmms-eval wrote. It exits with 0 when an evaluation fails, so only the file tells.

    Returns:
        `dict[str, dict]`: the metrics and the number of questions of each task; a group gives those of its tasks.

    Raises:
        ValueError: a task has no score.
    """
    paths = list(folder.glob("*/*_results.json"))
    found = json.loads(paths[0].read_text(encoding="utf-8")) if paths else {"results": {}}
    scores = {}
    for task, result in found["results"].items():
        # A metric is named "accuracy,none"; a group, which has a blank instead, gives its tasks' scores.
        if any("," in name for name in result):
            scores[task] = _metrics(result)
            if task in found["n-samples"]:
                scores[task]["num_questions"] = found["n-samples"][task]["effective"]
    # A tag is not named at all: its tasks are.
    missing = [name for name in names if name in found["results"] and name not in scores]
    missing = [name for name in missing if not found["group_subtasks"].get(name)]
    if missing or not scores:
        raise ValueError(
            f"lmms-eval gave no score for {', '.join(missing or names)}; it ended with exit code {exit_code}. "
            f"{log_path} holds all that it said, at last: {_last_line(log_path)}"
        )
    return scores


def _keep_answers(folder: Path, output_dir: Path) -> None:
    """Moves every answer, and files to hand in to a benchmark's own server, to where they stay."""
    for path in folder.glob("*/*_samples_*.jsonl"):
        os.replace(path, output_dir / path.name[path.name.index("samples_") :])
    for path in folder.glob("submissions/*"):
        (output_dir / "submissions").mkdir(exist_ok=True)
        os.replace(path, output_dir / "submissions" / path.name)


def _read_training(output_dir: Path, checkpoint: Path) -> dict:
    path = output_dir / "train_results.json"
    is_its_own = checkpoint.resolve() == (output_dir / "hub").resolve()
    return json.loads(path.read_text(encoding="utf-8")) if is_its_own and path.is_file() else {}


def evaluate(
    folder: str,
    tasks: str | list[str],
    output_dir: str | Path,
    limit: int | None = None,
    batch_size: int = 64,
    data_file: str | None = None,
    device: str | None = None,
    dtype: str = "auto",
) -> dict:
    """
    Answers the questions of `tasks` with a checkpoint through lmms-eval, in a process of its own, writes
    `output_dir/results.json` and prints the scores. The answers are left in `output_dir/samples_TASK.jsonl` and what
    lmms-eval says in `output_dir/evaluate.log`. The model card of a folder of this package then states the scores,
    unless only some questions were asked.

    Args:
        folder (`str`):
            A published folder, or a name on the Hub.
        tasks (`str` or `list[str]`):
            Names of lmms-eval's tasks or of this package's, with commas between them if a string.
        output_dir (`str` or `Path`):
            Where the results go; `output_dir/hub` also gets what `train_results.json` there says of its training.
        limit (`int`, *optional*):
            Ask only the first questions of each task.
        batch_size (`int`, *optional*, defaults to 64):
            Questions answered at once.
        data_file (`str`, *optional*):
            Parquet file with the questions of a task of this package; defaults to `output_dir/data/test.parquet`.
        device (`str`, *optional*):
            Such as `"cuda:1"`; defaults to the first accelerator, or the CPU.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Of the weights; `"auto"` is the checkpoint's own.

    Returns:
        `dict`: what `results.json` holds.

    Raises:
        ValueError: `folder` is no checkpoint or has a comma in its path, the questions of a task are missing,
            lmms-eval is not installed, or it gave no score.
    """
    names = [name.strip() for name in tasks.split(",")] if isinstance(tasks, str) else list(tasks)
    checkpoint = checkpoint_folder(folder)
    output_dir = Path(output_dir)
    data_files = _data_files(names, output_dir, data_file)
    if "," in str(checkpoint.resolve()):
        raise ValueError(f"{checkpoint.resolve()} has a comma in it, which lmms-eval cannot read; rename the folder.")
    if importlib.util.find_spec("lmms_eval") is None:
        raise ValueError("Evaluation needs lmms-eval: pip install lmms-eval==0.7.3")
    output_dir.mkdir(parents=True, exist_ok=True)

    start, log_path = time.monotonic(), output_dir / "evaluate.log"
    print(f"Evaluating {folder} on {', '.join(names)}; lmms-eval takes some seconds to start.", flush=True)
    with tempfile.TemporaryDirectory(prefix="evaluate-", dir=output_dir) as scratch:
        scratch = Path(scratch).resolve()
        _write_tasks(data_files, scratch)
        command = _command(checkpoint, names, scratch, limit, batch_size, device, dtype)
        exit_code = _run(command, log_path, scratch, is_offline=set(names) == set(data_files))
        scores = _read_scores(scratch / "results", names, log_path, exit_code)
        _keep_answers(scratch / "results", output_dir)

    results = {
        **_read_training(output_dir, checkpoint),
        "folder": str(folder),
        "task": ",".join(names),
        "limit": limit,
        **(scores[names[0]] if len(names) == 1 and list(scores) == names else {}),
        "tasks": scores,
        "num_parameters": count_parameters(checkpoint),
        "evaluate_seconds": round(time.monotonic() - start, 1),
    }
    write_json(output_dir / "results.json", results)
    if (Path(folder) / FACTS_FILE).is_file() and limit is None:
        write_card(Path(folder), card_results(scores))
    print(report(results, output_dir))
    return results
