"""
One process of an evaluation: `python -m hawaii.evaluation.lmms.worker PLAN`.

It evaluates one task at a time, so that the results of completed tasks are kept, and writes an error to a file for the
parent process. The command of lmms-eval catches errors and exits with status 0.
"""

import json
import os
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager
from lmms_eval.utils import handle_non_serializable

from ...files.user_error import UserError
from .model import Hawaii


MODEL_NAME = "hawaii"
# Columns with the image of a question in this package's data sets and in TextVQA, GQA, POPE and SEED-Bench. Questions
# about the same image are not independent, so a comparison of two models must group them.
IMAGE_NAMES = ("image_id", "imageId", "image_source", "data_id")


def check_task(name: str, manager: TaskManager) -> None:
    """
    Raises:
        UserError: lmms-eval has no such task.
    """
    if name not in manager.all_tasks:
        raise UserError(f"lmms-eval has no task {name}; `python -m lmms_eval --tasks list` lists its tasks.")


class Tasks:
    """The tasks of this package, which replace those of lmms-eval with the same names, and lmms-eval's other tasks."""

    def __init__(self, folder: str):
        self.ours = TaskManager(include_path=folder, include_defaults=False, model_name=MODEL_NAME)
        self.packaged = None

    def manager_of(self, name: str) -> TaskManager:
        """Returns the manager of a task. The tasks of lmms-eval are indexed only if one of them is requested."""
        if name in self.ours.all_tasks:
            return self.ours
        self.packaged = self.packaged or TaskManager(model_name=MODEL_NAME)
        check_task(name, self.packaged)
        return self.packaged


def write_json_lines(path: Path, rows: list[dict]) -> None:
    lines = (json.dumps(row, default=handle_non_serializable, ensure_ascii=False) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def describe_sample(sample: dict) -> dict:
    """Selects the data to save for one question: image, prompt, target, answer and scores."""
    responses, answers = (list(sample[key]) for key in ("resps", "filtered_resps"))
    excluded = ("doc", "doc_hash", "arguments", "resps", "token_counts", "input_media")
    row = {name: value for name, value in sample.items() if name not in excluded}
    row |= {"input": sample["arguments"][0], "target": str(sample["target"])}
    if (image := next((sample["doc"][name] for name in IMAGE_NAMES if name in sample["doc"]), None)) is not None:
        row["image_id"] = str(image)
    # Most questions have one answer.
    row["filtered_resps"] = answers[0] if len(answers) == 1 else answers
    return row if responses == [[answer] for answer in answers] else {**row, "resps": responses}


def run_task(name: str, manager: TaskManager, model: Hawaii, plan: dict) -> None:
    """Evaluates one task. Writes its results to `TASK.json` and its questions to `samples_*.jsonl`."""
    folder = Path(plan["results"])
    # The command-line options that lmms-eval reads during the evaluation.
    options = SimpleNamespace(process_with_media=False, output_path=str(folder), reasoning_tags=None)
    output = simple_evaluate(
        model=model,
        tasks=[name],
        task_manager=manager,
        batch_size=plan["batch_size"],
        limit=plan["limit"],
        bootstrap_iters=0,
        process_docs_parallel=1,
        cli_args=options,
    )
    if output is None:  # not the first process
        return
    for task, samples in output["samples"].items():
        samples = sorted(map(describe_sample, samples), key=lambda sample: sample["doc_id"])
        write_json_lines(folder / f"samples_{task}.jsonl", samples)
    content = {key: output[key] for key in ("results", "group_subtasks", "n-samples")}
    (folder / f"{name}.json").write_text(json.dumps(content, default=handle_non_serializable), encoding="utf-8")


def join_processes(device: str | None) -> Accelerator:
    """
    Joins all processes of the evaluation. If some were not joined, lmms-eval would wait for them forever.

    Args:
        device (`str`, *optional*):
            Device that the user has chosen.

    Raises:
        UserError: The processes cannot be joined on this device.
    """
    if device == "cpu" or not torch.accelerator.is_available():
        # By default, accelerate does not join processes on a CPU.
        os.environ["ACCELERATE_USE_CPU"] = "true"
    # All processes wait for the slowest one, which may be hours behind.
    accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=1))])
    num_started = int(os.environ.get("WORLD_SIZE", 1))
    if accelerator.num_processes != num_started:
        raise UserError(f"accelerate cannot join {num_started} processes on {accelerator.device}; start one.")
    return accelerator


def cause_of(error: Exception) -> Exception:
    """Returns the original error. lmms-eval retries loading data and then raises only a `RetryError`."""
    from tenacity import RetryError

    return error.__cause__ if isinstance(error, RetryError) and isinstance(error.__cause__, Exception) else error


def main(plan: dict) -> None:
    """
    Args:
        plan (`dict`):
            `pretrained`, `dtype`, `device`, `batch_size` and `trust_remote_code` of [`Hawaii`]; `tasks`,
            the task names; `task_folder`, the task files of this package; `limit`, the questions per task or `None`;
            `results`, the output folder.
    """
    from loguru import logger

    # Like the command of lmms-eval, log to stdout.
    logger.remove()
    logger.add(sys.stdout, level="INFO")
    accelerator = join_processes(plan["device"])
    task = None
    try:
        tasks = Tasks(plan["task_folder"])
        managers = {name: tasks.manager_of(name) for name in plan["tasks"]}
        options = {name: plan[name] for name in ("dtype", "device", "batch_size")}
        model = Hawaii(plan["pretrained"], trust_remote_code=plan["trust_remote_code"], **options)
        # lmms-eval would delete the model after the first task.
        model.clean = lambda: None
        for task, manager in managers.items():
            run_task(task, manager, model, plan)
    except Exception as error:
        # The parent process reads the error from a file, because stderr may be truncated.
        cause = cause_of(error)
        path = Path(plan["results"]) / f"error_{accelerator.process_index}.json"
        path.write_text(json.dumps({"task": task, "error": f"{type(cause).__name__}: {cause}"}), encoding="utf-8")
        raise


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
