"""Building blocks of the losses, computed with Python numbers."""

import math
from collections.abc import Iterable, Sequence

import torch


def naive_softmax(numbers: Sequence[float]) -> list[float]:
    total = sum(math.exp(number) for number in numbers)
    return [math.exp(number) / total for number in numbers]


def naive_mean(numbers: Iterable[float]) -> float:
    numbers = list(numbers)
    return sum(numbers) / len(numbers)


def naive_importance(teacher: list[list[float]], prompt: list[list[float]]) -> list[float]:
    """Eq. 5 of one image and one teacher: softmax over the m keys, mean over the m + t queries."""
    scores = [0.0] * len(teacher)
    for query in teacher + prompt:
        weights = naive_softmax([sum(q * k for q, k in zip(query, key)) / math.sqrt(len(query)) for key in teacher])
        for token, weight in enumerate(weights):
            scores[token] += weight / (len(teacher) + len(prompt))
    return scores


def assert_equals_naive(actual: torch.Tensor, expected) -> None:
    """Asserts that a float32 tensor equals nested lists of Python numbers."""
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-7)
