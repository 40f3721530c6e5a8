"""Accuracy of short answers. `evaluate.load` copies this file elsewhere, so it imports nothing of the package."""

from collections import defaultdict
from collections.abc import Sequence

import datasets
import evaluate


DESCRIPTION = """
The fraction of answers that equal the reference. Surrounding whitespace, case and one trailing period are ignored.
"""

INPUTS = """
Args:
    predictions (`list[str]`):
        Answers.
    references (`list[str]`):
        The reference answer to each question.
    question_types (`list[str]`, *optional*):
        The type of each question.

Returns:
    `dict` with `accuracy`, and `accuracy_by_type` if types are given.

Example:

    >>> metric = evaluate.load("metrics/answer_accuracy")
    >>> metric.compute(predictions=["Red.", "two"], references=["red", "three"], question_types=["color", "number"])
    {'accuracy': 0.5, 'accuracy_by_type': {'color': 1.0, 'number': 0.0}}
"""


def normalize(answer: str) -> str:
    """Removes surrounding whitespace, case and one trailing period."""
    return answer.strip().lower().removesuffix(".").strip()


def is_right(prediction: str, reference: str) -> bool:
    """Whether an answer equals the reference after normalization."""
    return normalize(prediction) == normalize(reference)


def mean_by_type(scores: Sequence[float], question_types: Sequence[str]) -> dict[str, float]:
    """
    Returns the mean score of each type of question, sorted by type.

    Raises:
        ValueError: The numbers of types and scores differ.
    """
    if len(question_types) != len(scores):
        raise ValueError(f"{len(question_types)} question_types for {len(scores)} answers; give one for each.")
    grouped = defaultdict(list)
    for score, question_type in zip(scores, question_types):
        grouped[question_type].append(score)
    return {question_type: sum(group) / len(group) for question_type, group in sorted(grouped.items())}


class AnswerAccuracy(evaluate.Metric):
    """
    See `DESCRIPTION` and `INPUTS`.

    Args:
        config_name, cache_dir, kwargs:
            As for `evaluate.Metric`.
        num_process (`int`, *optional*, defaults to 1):
            Number of processes that share the answers through files. A single process keeps them in memory.
        keep_in_memory (`bool`, *optional*):
            Ignored; see `num_process`.
    """

    def __init__(self, config_name=None, keep_in_memory=None, cache_dir=None, num_process=1, **kwargs):
        super().__init__(
            config_name, keep_in_memory=num_process == 1, cache_dir=cache_dir, num_process=num_process, **kwargs
        )

    def _build_data_dir(self):
        # evaluate creates this folder even if nothing is written to it.
        return "" if self.keep_in_memory else super()._build_data_dir()

    def _info(self):
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions, references, question_types=None):
        scores = [float(is_right(prediction, reference)) for prediction, reference in zip(predictions, references)]
        if not scores:
            raise ValueError("There are no answers to score.")
        result = {"accuracy": sum(scores) / len(scores)}
        if question_types is not None:
            result["accuracy_by_type"] = mean_by_type(scores, question_types)
        return result
