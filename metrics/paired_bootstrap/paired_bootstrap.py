"""The difference between two settings with its confidence interval. `evaluate.load` copies only this file."""

import math
from collections.abc import Sequence
from statistics import NormalDist

import datasets
import evaluate
import numpy as np


DESCRIPTION = """
The mean difference between the scores of a setting and a baseline, with an interval that contains the true difference
in 95 of 100 repetitions of the complete experiment with other seeds and other images.

Both settings must have the same questions and the same training seeds. Each draw resamples the groups of questions
(one group per image) and the seeds with replacement. It uses the same groups and seeds for both settings, so that
questions or seeds that are hard for both do not widen the interval. The value of a draw is the mean difference plus
the changes due to its groups and to its seeds.

A few resampled seeds vary less than new seeds. The change due to the seeds is therefore multiplied by a factor (2.7
for three seeds, 1.6 for five) that gives approximately Student's t interval if the questions make no difference. With
one seed, the interval covers only the variation of the questions, not that of other seeds.
"""

INPUTS = """
Args:
    scores (`list[list[float]]`):
        The score of each question with each seed.
    baseline_scores (`list[list[float]]`):
        The scores of the baseline with the same seeds in the same order.
    groups (`list[str]`):
        The group of each question, such as its image.
    tasks (`list[str]`, *optional*):
        The task of each question. Each task is resampled separately, and the difference is the mean over the tasks. By
        default, all questions are one task.
    confidence (`float`, *optional*, defaults to 0.95):
        Fraction of repetitions in which the interval contains the true difference.
    num_draws (`int`, *optional*, defaults to 10000):
        Number of draws.
    random_seed (`int`, *optional*, defaults to 0):
        Seed of the draws.

Returns:
    `dict` with `difference`, `low`, `high`, `num_seeds` and `num_groups`. `low` and `high` are `None` for one
    seed and one group, which cannot be resampled.

Example:

    >>> comparison = evaluate.load("metrics/paired_bootstrap", module_type="comparison")
    >>> comparison.compute(
    ...     scores=[[1, 1], [1, 1], [1, 0]], baseline_scores=[[0, 0], [1, 1], [0, 0]], groups=["a", "a", "b"]
    ... )
"""

MAX_WEIGHTS = 2**18  # in memory at once


def student_t_quantile(probability: float, degrees: int) -> float:
    """Returns the quantile of Student's t for a probability above 1/2 and an integer number of degrees of freedom."""

    def within(value: float) -> float:
        """Returns the probability of the interval from -value to value (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
        angle = math.atan(value / math.sqrt(degrees))
        sine, cosine = math.sin(angle), math.cos(angle)
        first = 3 if degrees % 2 else 2
        terms = np.cumprod([1.0, *(cosine**2 * (k - 1) / k for k in range(first, degrees - 1, 2))])
        if degrees % 2 == 0:
            return sine * terms.sum()
        return 2 / math.pi * (angle + (sine * cosine * terms.sum() if degrees > 1 else 0))

    low, high = 0.0, 1.0
    while within(high) < 2 * probability - 1:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle) < 2 * probability - 1 else (low, middle)
    return high


def _draw_weights(generator: np.random.Generator, num_draws: int, size: int) -> np.ndarray:
    """Returns how often each of `size` items occurs in each draw of `size` items: `(num_draws, size)`."""
    drawn = generator.integers(size, size=(num_draws, size)) + size * np.arange(num_draws)[:, None]
    return np.bincount(drawn.ravel(), minlength=num_draws * size).reshape(num_draws, size)


def _draws_of_groups(
    differences: np.ndarray, groups: np.ndarray, num_draws: int, generator: np.random.Generator
) -> np.ndarray:
    """Returns the mean over the questions of each draw of groups, `(num_draws,)`. Groups may differ in size."""
    names, group = np.unique(groups, return_inverse=True)
    sums = np.bincount(group, weights=differences)
    counts = np.bincount(group).astype(float)
    at_once = max(1, MAX_WEIGHTS // len(names))
    draws = []
    for start in range(0, num_draws, at_once):
        weights = _draw_weights(generator, min(at_once, num_draws - start), len(names)).astype(float)
        draws.append((weights @ sums) / (weights @ counts))
    return np.concatenate(draws)


def _draws_of_seeds(
    differences: np.ndarray, num_draws: int, confidence: float, generator: np.random.Generator
) -> np.ndarray:
    """Returns the change of the mean by each draw of seeds, scaled as in `DESCRIPTION`, `(num_draws,)`."""
    num_seeds, upper = len(differences), (1 + confidence) / 2
    quantile = student_t_quantile(upper, num_seeds - 1)
    stretch = math.sqrt(num_seeds / (num_seeds - 1)) * quantile / NormalDist().inv_cdf(upper)
    return stretch * (_draw_weights(generator, num_draws, num_seeds) / num_seeds) @ (differences - differences.mean())


def paired_bootstrap(
    scores: Sequence[Sequence[float]] | np.ndarray,
    baseline_scores: Sequence[Sequence[float]] | np.ndarray,
    groups: Sequence[str],
    tasks: Sequence[str] | None = None,
    confidence: float = 0.95,
    num_draws: int = 10_000,
    random_seed: int = 0,
) -> dict:
    """
    See `DESCRIPTION` and `INPUTS`.

    Raises:
        ValueError: The settings differ in their questions or seeds or have none, or the number of groups or tasks is
            not that of the questions.
    """
    scores, baseline_scores = np.asarray(scores, float), np.asarray(baseline_scores, float)  # (questions, seeds)
    if scores.shape != baseline_scores.shape or scores.ndim != 2 or scores.size == 0:
        raise ValueError(
            f"The scores are {scores.shape} and the baseline's {baseline_scores.shape}; both must be one row for each "
            "question, with one score for each seed."
        )
    group_of = np.asarray(groups)
    task_of = np.asarray(["all"] * len(scores) if tasks is None else tasks)
    if not len(group_of) == len(task_of) == len(scores):
        raise ValueError(
            f"There are {len(scores)} questions, {len(group_of)} groups and {len(task_of)} tasks; give one for each."
        )
    differences = scores - baseline_scores
    by_question = differences.mean(axis=1)
    generator = np.random.default_rng(random_seed)

    parts = [task_of == task for task in np.unique(task_of)]
    num_seeds, num_groups = differences.shape[1], sum(len(np.unique(group_of[part])) for part in parts)
    by_seed = np.mean([differences[part].mean(axis=0) for part in parts], axis=0)  # (seeds,)
    draws = np.mean(
        [_draws_of_groups(by_question[part], group_of[part], num_draws, generator) for part in parts], axis=0
    )
    if num_seeds > 1:
        draws = draws + _draws_of_seeds(by_seed, num_draws, confidence, generator)
    can_vary = num_seeds > 1 or num_groups > len(parts)
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2]).tolist() if can_vary else (None, None)
    return {
        "difference": float(by_seed.mean()),
        "low": low,
        "high": high,
        "num_seeds": num_seeds,
        "num_groups": num_groups,
    }


class PairedBootstrap(evaluate.Comparison):
    """
    See `DESCRIPTION` and `INPUTS`.

    Args:
        config_name, cache_dir, kwargs:
            As for `evaluate.Comparison`.
        num_process (`int`, *optional*, defaults to 1):
            Number of processes that share the scores through files. A single process keeps them in memory.
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
        scores = datasets.Sequence(datasets.Value("float64"))
        return evaluate.ComparisonInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features(
                {"scores": scores, "baseline_scores": scores, "groups": datasets.Value("string")}
            ),
        )

    def _compute(self, scores, baseline_scores, groups, **kwargs):
        return paired_bootstrap(scores, baseline_scores, groups, **kwargs)
