"""Statistics of an ablation: the mean of each row over seeds, and its difference from the baseline."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..evaluation.paper.benchmarks import BENCHMARKS
from ..evaluation.paper.results import in_percent
from ..figures.learning_curves import summarize_curves
from ..files.user_error import UserError
from ..metrics.paired_bootstrap.paired_bootstrap import paired_bootstrap


AVERAGE = "Avg."


@dataclass(frozen=True)
class Part:
    """A task, or the questions of one type in it."""

    task: str
    question_type: str | None = None


@dataclass(frozen=True)
class Column:
    """A column of the table: one part, or the average of several."""

    label: str
    parts: tuple[Part, ...]


def make_columns(scores: Mapping[str, dict]) -> list[Column]:
    """
    Returns the columns of a table: the tasks, or the question types of a single task, and the average.

    Args:
        scores (`Mapping[str, dict]`):
            Scores of one run by task; see [`read_scores`].
    """
    tasks = [Part(task) for task in scores]
    if len(tasks) > 1:
        labels = [BENCHMARKS[part.task].column if part.task in BENCHMARKS else part.task for part in tasks]
        return [*(Column(label, (part,)) for label, part in zip(labels, tasks)), Column(AVERAGE, tuple(tasks))]
    (task,) = scores
    types = [Column(name, (Part(task, name),)) for name in scores[task].get("by_type", {})]
    if len(types) > 1:
        return [*types, Column(AVERAGE, (Part(task),))]
    return [Column(BENCHMARKS[task].column if task in BENCHMARKS else task, (Part(task),))]


def _score(run: Mapping, part: Part) -> float:
    scores = run["scores"][part.task]
    return scores["score"] if part.question_type is None else scores["by_type"][part.question_type]


def value_of(run: Mapping, column: Column) -> float:
    """The value of a run in a column. MME is in points in its own column and in percent in an average."""
    if len(column.parts) == 1:
        return _score(run, column.parts[0])
    return float(np.mean([in_percent(part.task, _score(run, part)) for part in column.parts]))


def _question_scores(runs: Sequence[Mapping], part: Part) -> dict[str, list] | None:
    """
    The scores of the questions of a part, `(questions, runs)`, and their groups; `None` if the score of the task is
    not the mean over its questions.
    """
    by_run = [run["questions"][part.task] for run in runs if part.task in run["questions"]]
    if len(by_run) < len(runs):
        return None
    first = by_run[0]
    if any(questions[key] != first[key] for questions in by_run for key in ("groups", "types")):
        names = " and ".join(f"{run['row']}, seed {run['seed']}" for run in (runs[0], runs[-1]))
        raise UserError(
            f"The runs were evaluated on different questions of {part.task} ({names} are among them), so they cannot "
            "be compared: its data changed between them. Remove the runs and start again."
        )
    types = first["types"] or []
    chosen = [
        index
        for index in range(len(first["groups"]))
        if part.question_type is None or types[index] == part.question_type
    ]
    return {
        "scores": [[questions["scores"][index] for questions in by_run] for index in chosen],
        "groups": [first["groups"][index] for index in chosen],
    }


def compare(row: Mapping[int, Mapping], baseline: Mapping[int, Mapping], column: Column) -> dict | None:
    """
    Compares a row with the baseline, using the seeds that both have.

    Args:
        row, baseline (`Mapping[int, Mapping]`):
            Runs by seed.
        column (`Column`):
            The column to compare.

    Returns:
        `dict`, *optional*: `difference`, its interval from `low` to `high`, and `resampled`, a list of `"images"` and
        `"seeds"`. Images are resampled only if the score of every task is the mean over its questions. `None` if the
        rows have no seed in common.

    Raises:
        UserError: the runs were evaluated on different questions.
    """
    seeds = sorted(set(row) & set(baseline))
    if not seeds:
        return None
    runs = [[setting[seed] for seed in seeds] for setting in (row, baseline)]
    parts = [_question_scores([*runs[0], *runs[1]], part) for part in column.parts]
    parts = [part for part in parts if part is not None]
    if len(parts) == len(column.parts):
        scores = np.concatenate([np.array(part["scores"], float) for part in parts])  # (questions, 2 * seeds)
        groups = [group for part in parts for group in part["groups"]]
        tasks = [number for number, part in enumerate(parts) for _ in part["groups"]]
        result = paired_bootstrap(scores[:, : len(seeds)], scores[:, len(seeds) :], groups, tasks)
        resampled = ["images"] if result["num_groups"] > len(parts) else []
    else:
        values = [[[value_of(run, column) for run in setting]] for setting in runs]
        result, resampled = paired_bootstrap(*values, groups=["all"]), []
    resampled += ["seeds"] if len(seeds) > 1 else []
    return {**{key: result[key] for key in ("difference", "low", "high")}, "resampled": resampled}


def _mean_and_deviation(values: Sequence[float]) -> dict:
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "deviation": deviation}


def _teacher_share(run: Mapping) -> float | None:
    """The share of the teachers in the seconds of a run's steps; `None` if a stage was too short to time."""
    stages = [stage for stage in run.get("stages", {}).values() if stage["steps"]]
    if not stages or not all("teacher_share" in stage for stage in stages):
        return None
    seconds = [stage["steps"] * stage["seconds_per_step"] for stage in stages]
    return sum(stage["teacher_share"] * part for stage, part in zip(stages, seconds)) / sum(seconds)


def summarize_row(
    runs: Mapping[int, Mapping], baseline: Mapping[int, Mapping] | None, columns: Sequence[Column]
) -> dict:
    """
    Summarizes one row.

    Args:
        runs (`Mapping[int, Mapping]`):
            Finished runs of the row by seed.
        baseline (`Mapping[int, Mapping]`, *optional*):
            Finished runs of the baseline; `None` for the baseline itself.
        columns (`Sequence[Column]`):
            Columns of the table.

    Returns:
        `dict`: `columns`, each with the mean over seeds, the standard deviation, the value of each seed and the result
        of [`compare`]; and the cost of training.
    """
    summary = {"columns": {}}
    if not runs:
        return summary
    for column in columns:
        values = {seed: value_of(run, column) for seed, run in runs.items()}
        summary["columns"][column.label] = {
            **_mean_and_deviation(list(values.values())),
            "by_seed": values,
            "against_baseline": compare(runs, baseline, column) if baseline is not None else None,
        }
    for key in ("seconds_per_step", "train_seconds", "steps"):
        summary[key] = _mean_and_deviation([run[key] for run in runs.values()])
    shares = [share for run in runs.values() if (share := _teacher_share(run)) is not None]
    summary["teacher_share"] = _mean_and_deviation(shares) if shares else None
    return {**summary, "num_parameters": next(iter(runs.values()))["num_parameters"]}


def summarize(
    done: Mapping[str, Mapping[int, Mapping]], labels: Mapping[str, str], seeds: Sequence[int], baseline: str
) -> dict:
    """
    Summarizes all rows.

    Args:
        done (`Mapping[str, Mapping[int, Mapping]]`):
            Finished runs of each row by seed, at least one in all.
        labels (`Mapping[str, str]`):
            Labels of the rows.
        seeds (`Sequence[int]`):
            Seeds that each row should have.
        baseline (`str`):
            Row that others are compared with.

    Returns:
        `dict`: `seeds`, `baseline`, `columns` and `rows` of `ablation.json`.
    """
    columns = make_columns(next(run for runs in done.values() for run in runs.values())["scores"])
    rows = [
        {
            "name": name,
            "label": labels[name],
            "seeds": sorted(runs),
            "missing_seeds": [seed for seed in seeds if seed not in runs],
            **summarize_row(runs, done[baseline] if name != baseline else None, columns),
            "curve": summarize_curves([*runs.values()]),
        }
        for name, runs in done.items()
    ]
    described = [{"label": column.label, "tasks": [part.task for part in column.parts]} for column in columns]
    return {"seeds": list(seeds), "baseline": baseline, "columns": described, "rows": rows}
