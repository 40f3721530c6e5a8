"""Scores in a card's metadata and in `.eval_results`, which the leaderboards of the Hub read."""

import math
import re
from datetime import date
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml, parse_eval_result_entries
from huggingface_hub.utils import yaml_dump

from ..files.atomic import write_text
from ..files.escape import flatten, flatten_all
from ..files.run_contents import EVAL_RESULTS_FILE
from ..files.user_error import explain_errors
from .card_options import is_repository


# The notes of an entry have what it has no field for.
NOTES = re.compile(
    r"(?P<metric>.+?) of (?P<data_set>.+), split (?P<split>.+), lmms-eval task (?P<task>.+?)"
    r"(, (?P<number>\d+) questions)?"
)


def make_result(result: dict[str, Any], task_type: str) -> EvalResult:
    """A score as an entry of a card's `model-index`; see [`add_results`]."""
    number = result.get("num_questions")
    return EvalResult(
        task_type=task_type,
        dataset_type=flatten(result.get("repository", result["task"])),
        dataset_name=flatten(result.get("data_set", result["task"])),
        dataset_config=flatten_all(result.get("config")),
        dataset_split=flatten_all(result.get("split")),
        metric_type=flatten(result["metric"]),
        metric_value=flatten_all(result["value"]),
        metric_args={"num_questions": flatten_all(number)} if number else None,
    )


def _key(result: EvalResult) -> tuple:
    return (*result.unique_identifier, result.dataset_name, result.metric_type)


def merge_results(old: list[EvalResult], new: list[EvalResult]) -> list[EvalResult]:
    """The scores of both, where a new one replaces an old one of the same metric on the same data."""
    merged = {_key(result): result for result in [*old, *new]}
    return list(merged.values())


def _make_entry(result: dict[str, Any]) -> EvalResultEntry:
    number = result.get("num_questions")
    return EvalResultEntry(
        dataset_id=result["repository"],
        task_id=flatten(result.get("config") or "default"),
        value=flatten_all(result["value"]),
        date=date.today().isoformat(),
        notes=flatten(
            f"{result['metric']} of {result['data_set']}, split {result['split']}, lmms-eval task {result['task']}"
            + (f", {number} questions" if number else "")
        ),
    )


def read_entries(folder: Path) -> list[EvalResultEntry]:
    """
    Reads the entries of a folder's `.eval_results`, which its author may have edited; none if there is no such file.

    Raises:
        UserError: the file cannot be read.
    """
    path = folder / EVAL_RESULTS_FILE
    if not path.is_file():
        return []
    problem = f"{path} does not list scores; remove it, and `hawaii evaluate` writes it again"
    with explain_errors(problem, (ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError)):
        entries = parse_eval_result_entries(yaml.safe_load(path.read_text(encoding="utf-8")))
        for entry in entries:
            if not (isinstance(entry.dataset_id, str) and isinstance(entry.task_id, str)):
                raise TypeError(f"{entry.dataset_id}, {entry.task_id} are not names")
            if isinstance(entry.value, float) and not math.isfinite(entry.value):
                raise ValueError(f"the score of {entry.dataset_id} is {entry.value}")
    return entries


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The scores in a folder's `.eval_results` that [`write_eval_results`] wrote, as it got them."""
    results = []
    for entry in read_entries(folder):
        if found := NOTES.fullmatch(str(entry.notes)):
            config = None if entry.task_id == "default" else entry.task_id
            number = int(found["number"]) if found["number"] else ""
            texts = {name: found[name] for name in ("metric", "data_set", "split", "task")}
            results.append(
                {**texts, "repository": entry.dataset_id, "config": config, "value": entry.value}
                | {"num_questions": number}
            )
    return results


def write_eval_results(folder: Path, results: list[dict[str, Any]]) -> None:
    """
    Adds the scores on data sets of the Hub to a folder's `.eval_results`; those of other data are left out, because
    the Hub has no page for them.

    Raises:
        UserError: the file exists and cannot be read.
    """
    entries = [_make_entry(result) for result in results if is_repository(str(result.get("repository", "")))]
    if not entries:
        return
    merged = {(entry.dataset_id, entry.task_id): entry for entry in [*read_entries(folder), *entries]}
    text = yaml_dump(eval_result_entries_to_yaml(list(merged.values())), sort_keys=False)
    write_text(folder / EVAL_RESULTS_FILE, text)
