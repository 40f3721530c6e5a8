"""Reads the results of an evaluation: the score of each task and of each question."""

import json
import math
from pathlib import Path

from ..evaluation.paper.benchmarks import BENCHMARKS
from ..files.atomic import read_json
from ..files.user_error import UserError


# In percent. Some tasks round their score; any other mean of the questions differs by more.
ROUNDING = 0.005


def _choose_metric(task: str, metrics: dict) -> str:
    """The metric whose value is the score of a task."""
    numbers = [name for name, value in metrics.items() if name != "num_questions" and isinstance(value, int | float)]
    preferred = BENCHMARKS[task].metric if task in BENCHMARKS else "accuracy"
    if not numbers or task in BENCHMARKS and preferred not in numbers:
        raise UserError(
            f"The results of {task} have no {preferred if task in BENCHMARKS else 'number'} for the table, only "
            f"{', '.join(metrics) or 'an empty entry'}. Use another task."
        )
    return preferred if preferred in numbers else numbers[0]


def _question_scores(samples: list[dict], metric: str) -> list[float]:
    """The score of each question; empty unless every question has one."""
    values = [sample.get(metric) for sample in samples]
    values = [value.get("score") if isinstance(value, dict) else value for value in values]
    numbers = [float(value) for value in values if isinstance(value, int | float)]
    return numbers if len(numbers) == len(samples) else []


def _question_types(samples: list[dict]) -> list[str] | None:
    """The type of each question; `None` unless every question has one."""
    values = [sample.get("accuracy_by_type") for sample in samples]
    types = [value["question_type"] for value in values if isinstance(value, dict)]
    return types if len(types) == len(samples) else None


def read_scores(folder: Path) -> tuple[dict[str, dict], dict[str, dict]]:
    """
    Reads the results of [`evaluate`].

    Args:
        folder (`Path`):
            Folder with `results.json` and `samples_TASK.jsonl`.

    Returns:
        `tuple[dict[str, dict], dict[str, dict]]`: for each task, its `score`, `num_questions` and, if its questions
        have types, `by_type`; and for each task whose score is the mean of its questions' scores, the `scores`,
        `groups` and `types` of the questions. Shares are in percent. A group is an image, or a single question if the
        images are unknown.

    Raises:
        UserError: a task has no number that can be its score.
    """
    results = read_json(folder / "results.json")
    scores, questions = {}, {}
    for task, metrics in results["tasks"].items():
        metric, path = _choose_metric(task, metrics), folder / f"samples_{task}.jsonl"
        samples = []
        if path.is_file():
            with path.open(encoding="utf-8") as file:
                samples = [json.loads(line) for line in file]
        values = _question_scores(samples, metric)
        mean = sum(values) / len(values) if values else math.nan  # no comparison with NaN is true
        score = results.get("paper_scores", {}).get(task)
        if score is None:
            # A mean of shares becomes percent; any other number stays unchanged.
            is_share = abs(mean - metrics[metric]) < ROUNDING / 100 and max(values) <= 1
            score = 100 * metrics[metric] if is_share else metrics[metric]
        scores[task] = {"score": score, "num_questions": metrics.get("num_questions", len(samples))}
        if isinstance(metrics.get("accuracy_by_type"), dict):
            scores[task]["by_type"] = {name: 100 * value for name, value in metrics["accuracy_by_type"].items()}
        # The scale on which the mean of the questions is the score of the task, if there is one.
        scale = next((scale for scale in (100.0, 1.0) if abs(scale * mean - score) < ROUNDING), None)
        if scale is not None:
            questions[task] = {
                "scores": [scale * value for value in values],
                "groups": [sample.get("image_id", f"question {sample['doc_id']}") for sample in samples],
                "types": _question_types(samples),
            }
    return scores, questions
