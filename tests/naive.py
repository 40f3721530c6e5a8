"""What losses are made of, in Python numbers."""

import math
from collections.abc import Iterable, Sequence


def naive_softmax(numbers: Sequence[float]) -> list[float]:
    total = sum(math.exp(number) for number in numbers)
    return [math.exp(number) / total for number in numbers]


def naive_mean(numbers: Iterable[float]) -> float:
    numbers = list(numbers)
    return sum(numbers) / len(numbers)
