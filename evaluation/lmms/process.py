"""Runs lmms-eval in separate processes and reads their results."""

import codecs
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from ...files.atomic import write_json
from ...files.user_error import UserError


# Scores of the completed tasks if another task failed; results.json exists only if all tasks are complete.
UNFINISHED_FILE = "unfinished_results.json"
LOG_FILE = "evaluate.log"
WORKER = f"{__package__}.worker"
COLOR = re.compile(r"\x1b\[[0-9;]*m")


def _command(plan_path: Path, num_processes: int) -> list[str]:
    command = [sys.executable, "-m"]
    if num_processes > 1:
        # The equivalent of `accelerate launch` on one machine, which would read the user's configuration and need MPI
        # on a CPU.
        command += ["torch.distributed.run", "--standalone", "--nproc_per_node", str(num_processes), "-m"]
    return [*command, WORKER, str(plan_path)]


def _run(command: list[str], log_path: Path, scratch: Path, environment: Mapping[str, str]) -> int:
    """Runs a command. Shows its stderr while it runs and writes all of its output to the log."""
    # lmms-eval logs to stdout; stderr has progress bars, warnings and tracebacks. The scratch folder is the working
    # folder, because a datasets.py in the user's current folder would hide the library.
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    with open(log_path, "wb", buffering=0) as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.PIPE, env={**os.environ, **environment}, cwd=scratch
        )
        try:
            # Not line by line: a progress bar has no line ends.
            while chunk := os.read(process.stderr.fileno(), 65536):
                log.write(chunk)
                sys.stderr.write(decoder.decode(chunk))
                sys.stderr.flush()
        except BaseException:
            # The launcher of torch ends its processes on SIGTERM but not on SIGKILL.
            process.terminate()
            raise
        finally:
            exit_code = process.wait()
            process.stderr.close()
    return exit_code


def _metrics(result: dict) -> dict:
    """`{"accuracy,none": 0.5, "accuracy_stderr,none": 0.1, "alias": "x"}` -> `{"accuracy": 0.5}`."""
    metrics = {}
    for key, value in result.items():
        # The filter that extracted the answer follows the comma; most tasks have only one.
        name, _, is_metric = key.partition(",")
        # A benchmark that is scored on a server has a submission file instead of a number.
        if is_metric and "_stderr" not in name and isinstance(value, int | float | dict):
            metrics[key if name in metrics else name] = value
    return metrics


def shown_lines(text: str) -> list[str]:
    """Returns the non-empty lines of a log without colours, and only the last state of each progress bar."""
    lines = [line.rstrip("\r").rsplit("\r", 1)[-1].strip() for line in COLOR.sub("", text).split("\n")]
    return [line for line in lines if line]


def _first_error(results: Path) -> dict | None:
    """Reads the error of the process that failed first; the other processes fail as a consequence."""
    paths = sorted(results.glob("error_*.json"), key=lambda path: path.stat().st_mtime_ns)
    return json.loads(paths[0].read_text(encoding="utf-8")) if paths else None


def _read_task(path: Path) -> dict[str, dict]:
    """
    Reads the metrics and the number of questions of a task, or of each task of a group or tag. Returns an empty
    dictionary if the task is not complete.
    """
    if not path.is_file():
        return {}
    output = json.loads(path.read_text(encoding="utf-8"))
    scores = {}
    for task, result in output["results"].items():
        # Metrics are named like "accuracy,none". A group has none.
        if any("," in name for name in result):
            scores[task] = _metrics(result)
            if task in output["n-samples"]:
                scores[task]["num_questions"] = output["n-samples"][task]["effective"]
    return scores


def _describe_failure(names: list[str], missing: list[str], exit_code: int, results: Path, output_dir: Path) -> str:
    """Describes which tasks have no score, where the scores of the others are, and the last error."""
    done = [name for name in names if name not in missing]
    log_path = output_dir / LOG_FILE
    last_line = next(reversed(shown_lines(log_path.read_bytes().decode(errors="replace"))), "nothing")
    error = _first_error(results) or {"task": None, "error": last_line}
    text = f"lmms-eval gave no score for {', '.join(missing)}" if missing else "lmms-eval gave all scores but failed"
    text += f" (exit code {exit_code})"
    if done:
        text += f" after {', '.join(done)}. {output_dir / UNFINISHED_FILE} has the scores so far"
        if missing:
            text += "; evaluate again, or evaluate only the other tasks with another --output_dir"
    of_task = f" of {error['task']}" if error["task"] else ""
    return f"{text}. {log_path} has the complete output; the last error{of_task} is: {error['error']}"


def _keep_answers(results: Path, output_dir: Path) -> None:
    """
    Moves the answers and submission files to the output folder. Deletes results of an earlier evaluation, which would
    not match the new answers.
    """
    answers = [*results.glob("samples_*.jsonl")]
    if answers:
        for name in ("results.md", "results.json", UNFINISHED_FILE):
            (output_dir / name).unlink(missing_ok=True)
    for path in answers:
        os.replace(path, output_dir / path.name)
    for path in results.glob("submissions/*"):
        (output_dir / "submissions").mkdir(exist_ok=True)
        os.replace(path, output_dir / "submissions" / path.name)


def run_lmms_eval(
    plan: dict, output_dir: Path, scratch: Path, num_processes: int, environment: Mapping[str, str]
) -> dict[str, dict]:
    """
    Evaluates the tasks of a plan. Writes the answers to `output_dir/samples_TASK.jsonl` and the output of lmms-eval to
    `output_dir/evaluate.log`. If a task fails, it keeps the answers of the tasks before it and writes their scores to
    `output_dir/unfinished_results.json`.

    Args:
        plan (`dict`):
            The argument of `worker.main` without `results`.
        output_dir (`Path`):
            Folder for the answers and the log.
        scratch (`Path`):
            Folder for temporary files.
        num_processes (`int`):
            Number of processes. Each loads the complete model and answers its share of the questions.
        environment (`Mapping[str, str]`):
            Additional environment variables of the processes.

    Returns:
        `dict[str, dict]`: Metrics and number of questions of each task, including those of groups.

    Raises:
        UserError: Answering or scoring failed, or a task has no score.
    """
    results, names = scratch / "results", plan["tasks"]
    results.mkdir()
    (scratch / "plan.json").write_text(json.dumps({**plan, "results": str(results)}), encoding="utf-8")
    exit_code = _run(_command(scratch / "plan.json", num_processes), output_dir / LOG_FILE, scratch, environment)
    _keep_answers(results, output_dir)
    by_name = {name: _read_task(results / f"{name}.json") for name in names}
    scores = {task: metrics for tasks in by_name.values() for task, metrics in tasks.items()}
    missing = [name for name, tasks in by_name.items() if not tasks]
    if missing or exit_code != 0:
        if scores:
            content = {"pretrained": plan["pretrained"], "limit": plan["limit"], "missing": missing, "tasks": scores}
            write_json(output_dir / UNFINISHED_FILE, content)
        raise UserError(_describe_failure(names, missing, exit_code, results, output_dir))
    return scores
