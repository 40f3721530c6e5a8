"""What an evaluation left, as numbers of a table: scores of tasks, in percent if they are shares, and of questions."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

from ..evaluation.paper.benchmarks import BENCHMARKS
from ..files.user_error import UserError


# In percent. Some tasks round what they give; the mean of other scores than the task's own is further away.
ROUNDING = 0.005


def _metric(task: str, metrics: dict) -> str:
    """The one number of a task."""
    numbers = [name for name, value in metrics.items() if name != "num_questions" and isinstance(value, int | float)]
    preferred = BENCHMARKS[task].metric if task in BENCHMARKS else "accuracy"
    if not numbers or task in BENCHMARKS and preferred not in numbers:
        raise UserError(
            f"{task} was scored without {preferred if task in BENCHMARKS else 'a number'}, so it cannot be a column: "
            f"it gives {', '.join(metrics) or 'nothing'}."
        )
    return preferred if preferred in numbers else numbers[0]


def _read_lines(path: Path) -> Iterator[dict]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def _question_scores(samples: list[dict], metric: str) -> list[float]:
    """Of each question; none, if a question has none."""
    values = [sample.get(metric) for sample in samples]
    values = [value.get("score") if isinstance(value, dict) else value for value in values]
    numbers = [float(value) for value in values if isinstance(value, int | float)]
    return numbers if len(numbers) == len(samples) else []


def _groups(samples: list[dict]) -> list[str]:
    """The image of each question; where it is not known, each question is by itself."""
    return [sample.get("image_id", f"question {sample['doc_id']}") for sample in samples]


def _types(samples: list[dict]) -> list[str] | None:
    """The type of each question, if they have any."""
    values = [sample.get("accuracy_by_type") for sample in samples]
    types = [value["question_type"] for value in values if isinstance(value, dict)]
    return types if len(types) == len(samples) else None


def _as_shown(mean: float, value: float) -> float | None:
    """What a question's score is multiplied with so that their mean is the task's number, if anything does it."""
    return next((factor for factor in (100.0, 1.0) if abs(factor * mean - value) < ROUNDING), None)


def read_scores(folder: Path) -> tuple[dict[str, dict], dict[str, dict]]:
    """
    Reads what [`evaluate`] left.

    Args:
        folder (`Path`):
            With `results.json` and `samples_TASK.jsonl`.

    Returns:
        Of each task its `score`, `num_questions` and, where questions have types, `by_type`; and, of each whose score
        is the mean of those of its questions, `scores`, `groups` and `types` of these.
    """
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    scores, questions = {}, {}
    for task, metrics in results["tasks"].items():
        metric, path = _metric(task, metrics), folder / f"samples_{task}.jsonl"
        samples = list(_read_lines(path)) if path.is_file() else []
        values = _question_scores(samples, metric)
        mean = sum(values) / len(values) if values else math.nan  # which is near no number
        shown = results.get("paper_scores", {}).get(task)
        if shown is None:
            # A share, if it is the mean of its questions' shares; any other number is left as it is.
            is_share = abs(mean - metrics[metric]) < ROUNDING / 100 and max(values) <= 1
            shown = 100 * metrics[metric] if is_share else metrics[metric]
        scores[task] = {"score": shown, "num_questions": metrics.get("num_questions", len(samples))}
        if isinstance(metrics.get("accuracy_by_type"), dict):
            scores[task]["by_type"] = {name: 100 * value for name, value in metrics["accuracy_by_type"].items()}
        factor = _as_shown(mean, shown)
        if factor is not None:
            questions[task] = {
                "scores": [factor * value for value in values],
                "groups": _groups(samples),
                "types": _types(samples),
            }
    return scores, questions
