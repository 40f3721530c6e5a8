"""Runs lmms-eval in processes of its own and reads what they leave."""

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


# The scores of the tasks that were done, where another failed; results.json is of all.
UNFINISHED_FILE = "unfinished_results.json"
LOG_FILE = "evaluate.log"
WORKER = f"{__package__}.worker"
COLOR = re.compile(r"\x1b\[[0-9;]*m")


def _command(plan_path: Path, num_processes: int) -> list[str]:
    command = [sys.executable, "-m"]
    if num_processes > 1:
        # What `accelerate launch` comes to on one machine; itself it reads a configuration of the user's, and would
        # need MPI on a CPU.
        command += ["torch.distributed.run", "--standalone", "--nproc_per_node", str(num_processes), "-m"]
    return [*command, WORKER, str(plan_path)]


def _run(command: list[str], log_path: Path, scratch: Path, environment: Mapping[str, str]) -> int:
    """Runs a command; its errors and progress are shown as they come, all it says goes to the log."""
    # lmms-eval logs to stdout, which only the log keeps; stderr has the progress bars, warnings and tracebacks. It
    # runs in a folder of its own: a user's datasets.py in the current one must not hide the library.
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    with open(log_path, "wb", buffering=0) as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.PIPE, env={**os.environ, **environment}, cwd=scratch
        )
        try:
            # Not by lines: a progress bar ends none.
            while chunk := os.read(process.stderr.fileno(), 65536):
                log.write(chunk)
                sys.stderr.write(decoder.decode(chunk))
                sys.stderr.flush()
        except BaseException:
            # Torch's launcher ends its processes when it is asked to, and leaves them when it is killed.
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
        # After the comma stands how the answer was read: most tasks know one way.
        name, _, is_metric = key.partition(",")
        # A benchmark that scores on its own server has no number here, but a file to hand in.
        if is_metric and "_stderr" not in name and isinstance(value, int | float | dict):
            metrics[key if name in metrics else name] = value
    return metrics


def shown_lines(said: str) -> list[str]:
    """The lines of a log, without colours, in which something stands; of a progress bar what it showed last."""
    lines = [line.rstrip("\r").rsplit("\r", 1)[-1].strip() for line in COLOR.sub("", said).split("\n")]
    return [line for line in lines if line]


def _last_line(log_path: Path) -> str:
    return next(reversed(shown_lines(log_path.read_bytes().decode(errors="replace"))), "nothing")


def _first_error(results: Path) -> dict | None:
    """What the process that failed first left: the others fail for want of it."""
    paths = sorted(results.glob("error_*.json"), key=lambda path: path.stat().st_mtime_ns)
    return json.loads(paths[0].read_text(encoding="utf-8")) if paths else None


def _read_task(path: Path) -> dict[str, dict]:
    """
    The metrics and the number of questions of a task; a group or a tag gives those of its tasks. Empty where the task
    was not done.
    """
    if not path.is_file():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    scores = {}
    for task, result in found["results"].items():
        # A metric is named "accuracy,none"; a group, which has a blank instead, gives its tasks' scores.
        if any("," in name for name in result):
            scores[task] = _metrics(result)
            if task in found["n-samples"]:
                scores[task]["num_questions"] = found["n-samples"][task]["effective"]
    return scores


def _describe_failure(names: list[str], missing: list[str], exit_code: int, results: Path, output_dir: Path) -> str:
    """Which tasks have no score, which have one and where it is, and what was said at last."""
    done = [name for name in names if name not in missing]
    log_path = output_dir / LOG_FILE
    error = _first_error(results) or {"task": None, "error": _last_line(log_path)}
    said = f"lmms-eval gave no score for {', '.join(missing)}; it" if missing else "lmms-eval gave every score, but it"
    said += f" ended with exit code {exit_code}"
    if done:
        said += f" after {', '.join(done)}. {output_dir / UNFINISHED_FILE} holds the scores so far"
        if missing:
            said += "; evaluate again, or ask the rest alone into another --output_dir"
    of_task = f" of {error['task']}" if error["task"] else ""
    return f"{said}. {log_path} holds all that it said, at last{of_task}: {error['error']}"


def _keep_answers(results: Path, output_dir: Path) -> None:
    """
    Moves every answer, and files to hand in to a benchmark's own server, to where they stay. The results of an earlier
    evaluation go: they would stand beside answers that they are not of.
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
    Evaluates the tasks of a plan. The answers are left in `output_dir/samples_TASK.jsonl`, and what lmms-eval says in
    `output_dir/evaluate.log`. Of tasks that were done before another failed, the answers are left too, and the scores
    in `output_dir/unfinished_results.json`.

    Args:
        plan (`dict`):
            As `lmms_worker.main` takes it, but for its `results`.
        output_dir (`Path`):
            Where answers and log go.
        scratch (`Path`):
            A folder that may be filled.
        num_processes (`int`):
            Each holds the whole model and answers its share of the questions.
        environment (`Mapping[str, str]`):
            Variables set for them.

    Returns:
        `dict[str, dict]`: the metrics and the number of questions of each task; a group gives those of its tasks.

    Raises:
        ValueError: an error in answering or scoring, or a task without a score.
    """
    results, names = scratch / "results", plan["tasks"]
    results.mkdir()
    (scratch / "plan.json").write_text(json.dumps({**plan, "results": str(results)}), encoding="utf-8")
    exit_code = _run(_command(scratch / "plan.json", num_processes), output_dir / LOG_FILE, scratch, environment)
    _keep_answers(results, output_dir)
    found = {name: _read_task(results / f"{name}.json") for name in names}
    scores = {task: metrics for tasks in found.values() for task, metrics in tasks.items()}
    missing = [name for name, tasks in found.items() if not tasks]
    if missing or exit_code != 0:
        if scores:
            kept = {"pretrained": plan["pretrained"], "limit": plan["limit"], "missing": missing, "tasks": scores}
            write_json(output_dir / UNFINISHED_FILE, kept)
        raise UserError(_describe_failure(names, missing, exit_code, results, output_dir))
    return scores
