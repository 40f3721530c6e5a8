"""
One process of an evaluation: `python -m hawaii.evaluation.lmms.worker PLAN`.

It asks lmms-eval for one task after the other with one model, so that what is done stays done, and leaves the first
error for whoever started it. lmms-eval's own command catches errors and ends as if nothing had happened.
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
# What data sets call the image of a question: this package's and TextVQA, GQA, POPE, SEED-Bench. Questions about one
# image are no independent witnesses, and whoever compares two models must know which they are.
IMAGE_NAMES = ("image_id", "imageId", "image_source", "data_id")


def check_task(name: str, manager: TaskManager) -> None:
    """
    Raises:
        ValueError: lmms-eval has no such task.
    """
    if name not in manager.all_tasks:
        raise UserError(f"lmms-eval has no task {name}; `python -m lmms_eval --tasks list` shows what it has.")


class Tasks:
    """The tasks of this package, and lmms-eval's own where one of those is asked for: ours go by the same names."""

    def __init__(self, folder: str):
        self.ours = TaskManager(include_path=folder, include_defaults=False, model_name=MODEL_NAME)
        self.packaged = None

    def manager_of(self, name: str) -> TaskManager:
        """The manager that knows a task."""
        if name in self.ours.all_tasks:
            return self.ours
        self.packaged = self.packaged or TaskManager(model_name=MODEL_NAME)
        check_task(name, self.packaged)
        return self.packaged


def write_json_lines(path: Path, rows: list[dict]) -> None:
    lines = (json.dumps(row, default=handle_non_serializable, ensure_ascii=False) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def describe_sample(sample: dict) -> dict:
    """What is kept of one question: of which image it is, what was asked and answered, and its scores."""
    said, scored = (list(sample[key]) for key in ("resps", "filtered_resps"))
    left_out = ("doc", "doc_hash", "arguments", "resps", "token_counts", "input_media")
    kept = {name: value for name, value in sample.items() if name not in left_out}
    kept |= {"input": sample["arguments"][0], "target": str(sample["target"])}
    if (image := next((sample["doc"][name] for name in IMAGE_NAMES if name in sample["doc"]), None)) is not None:
        kept["image_id"] = str(image)
    # One answer to a question is the rule.
    kept["filtered_resps"] = scored[0] if len(scored) == 1 else scored
    return kept if said == [[answer] for answer in scored] else {**kept, "resps": said}


def run_task(name: str, manager: TaskManager, model: Hawaii, plan: dict) -> None:
    """Evaluates one task and writes what it gave: `TASK.json` and the questions of each of its parts."""
    folder = Path(plan["results"])
    # What lmms-eval reads of its own command line.
    options = SimpleNamespace(process_with_media=False, output_path=str(folder), reasoning_tags=None)
    found = simple_evaluate(
        model=model,
        tasks=[name],
        task_manager=manager,
        batch_size=plan["batch_size"],
        limit=plan["limit"],
        bootstrap_iters=0,
        process_docs_parallel=1,
        cli_args=options,
    )
    if found is None:  # not the first process
        return
    for task, samples in found["samples"].items():
        samples = sorted(map(describe_sample, samples), key=lambda sample: sample["doc_id"])
        write_json_lines(folder / f"samples_{task}.jsonl", samples)
    kept = {key: found[key] for key in ("results", "group_subtasks", "n-samples")}
    (folder / f"{name}.json").write_text(json.dumps(kept, default=handle_non_serializable), encoding="utf-8")


def join_processes(device: str | None) -> Accelerator:
    """
    Joins the processes that were started together; all of them, or lmms-eval would wait for some in vain.

    Args:
        device (`str`, *optional*):
            As the user named it.
    """
    if device == "cpu" or not torch.accelerator.is_available():
        # Unasked, accelerate does not join processes on a CPU.
        os.environ["ACCELERATE_USE_CPU"] = "true"
    # They wait for the slowest, which may be hours behind.
    accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=1))])
    num_started = int(os.environ.get("WORLD_SIZE", 1))
    if accelerator.num_processes != num_started:
        raise UserError(f"accelerate cannot join {num_started} processes on {accelerator.device}; start one.")
    return accelerator


def cause_of(error: Exception) -> Exception:
    """What lmms-eval, which tries to load data several times, says only that it gave up on."""
    from tenacity import RetryError

    return error.__cause__ if isinstance(error, RetryError) and isinstance(error.__cause__, Exception) else error


def main(plan: dict) -> None:
    """
    Args:
        plan (`dict`):
            `pretrained`, `dtype`, `device`, `batch_size` as for [`Hawaii`]; `tasks`, names; `task_folder`, the files
            of those that are ours; `limit`, questions of each task or `None`; `results`, a folder to write into.
    """
    from loguru import logger

    # As lmms-eval's own command: what it says goes to stdout, which the log keeps.
    logger.remove()
    logger.add(sys.stdout, level="INFO")
    accelerator = join_processes(plan["device"])
    task = None
    try:
        tasks = Tasks(plan["task_folder"])
        managers = {name: tasks.manager_of(name) for name in plan["tasks"]}
        model = Hawaii(plan["pretrained"], dtype=plan["dtype"], device=plan["device"], batch_size=plan["batch_size"])
        # lmms-eval would free the memory of the model when its answers are there; the next task needs it.
        model.clean = lambda: None
        for task, manager in managers.items():
            run_task(task, manager, model, plan)
    except Exception as error:
        # Whatever it is, whoever started this process must be able to tell it; what stderr says may be cut off.
        cause = cause_of(error)
        said = {"task": task, "error": f"{type(cause).__name__}: {cause}"}
        path = Path(plan["results"]) / f"error_{accelerator.process_index}.json"
        path.write_text(json.dumps(said), encoding="utf-8")
        raise


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
