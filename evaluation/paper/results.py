"""Table 1 of the paper (Vicuna-1.5-7B), and a checkpoint's row in it."""

from collections.abc import Mapping

from ...files.markdown_table import markdown_table
from .benchmarks import BENCHMARKS


def _row(*scores: float | None) -> dict[str, float]:
    return {task: score for task, score in zip(BENCHMARKS, scores, strict=True) if score is not None}


PAPER_ROWS = {
    "LLaVA-1.5": _row(58.2, 50.0, 62.0, 66.8, 85.9, 1510.7, 64.3, 34.7, 55.5, 66.1),
    "MoVE-KD": _row(58.3, 52.3, 63.2, 69.4, 86.9, 1524.5, 66.3, None, None, None),
    "HAWAII": _row(58.7, 53.9, 62.8, 70.5, 87.3, 1540.2, 66.9, 36.6, 56.2, 67.5),
    "HAWAII-dagger": _row(58.6, 54.2, 63.6, 69.5, 86.8, 1533.6, 67.1, 36.0, 56.2, 67.2),
    "HAWAII-double-dagger": _row(59.2, 54.3, 63.3, 70.8, 87.5, 1528.6, 66.7, 36.9, 55.8, 67.9),
}
# Ten subjects of at most 200 points. The paper says only that it normalises: this gives each average that it prints.
MME_POINTS = 2000


def paper_scores(scores: Mapping[str, Mapping]) -> dict[str, float]:
    """
    The numbers of Table 1.

    Args:
        scores (`Mapping[str, Mapping]`):
            What lmms-eval gives for each task.

    Returns:
        `dict[str, float]`: by benchmark, in the paper's order. One has none where no question was asked that counts
        for it, such as where a limit leaves nothing of MME's perception part.
    """
    return {
        task: benchmark.scale * scores[task][benchmark.metric]
        for task, benchmark in BENCHMARKS.items()
        if benchmark.metric in scores.get(task, {})
    }


def in_percent(task: str, score: float) -> float:
    """What of a number of Table 1 goes into an average."""
    return 100 * score / MME_POINTS if task == "mme" else score


def average(scores: Mapping[str, float]) -> float | None:
    """
    The paper's average over the ten benchmarks, MME in percent of its points.

    Args:
        scores (`Mapping[str, float]`):
            Numbers of Table 1 by task.

    Returns:
        `float`, or `None` where a benchmark is missing.
    """
    if BENCHMARKS.keys() - scores.keys():
        return None
    percents = [in_percent(task, scores[task]) for task in BENCHMARKS]
    return sum(percents) / len(percents)


def table(name: str, scores: Mapping[str, float]) -> str:
    """
    Table 1 with one more row, in the benchmarks that were asked.

    Args:
        name (`str`):
            Of the checkpoint.
        scores (`Mapping[str, float]`):
            Its numbers by task.

    Returns:
        `str`: a table in Markdown that also reads well as it is.
    """
    tasks = [task for task in BENCHMARKS if task in scores]
    rows = [["", *(BENCHMARKS[task].column for task in tasks), "average"]]
    for label, row in [*PAPER_ROWS.items(), (name, scores)]:
        numbers = [row.get(task) for task in tasks] + [average(row) if len(tasks) == len(BENCHMARKS) else None]
        rows.append([label, *("-" if number is None else f"{number:.1f}" for number in numbers)])
    if len(tasks) < len(BENCHMARKS):
        rows = [row[:-1] for row in rows]
    return markdown_table(rows[0], rows[1:])


def paper_report(results: Mapping) -> str:
    """
    What `results.md` holds.

    Args:
        results (`Mapping`):
            What `results.json` holds.

    Returns:
        `str`: Markdown: the table, and what its numbers are.
    """
    scores = results["paper_scores"]
    lines = [f"# {results['folder']} on the benchmarks of the paper", "", table(results["folder"], scores), ""]
    if results["limit"] is not None:
        lines += [f"**Of each benchmark only the first {results['limit']} questions were asked: no score of it.**", ""]
    if unscored := [task for task in results["tasks"] if task in BENCHMARKS and task not in scores]:
        lines += [f"**Nothing was asked of {', '.join(unscored)} that counts for the table.**", ""]
    lines += [
        "The last row is measured here, the others are of the paper's Table 1 (Vicuna-1.5-7B). In percent, but for "
        f"MME: the points of its perception part, {MME_POINTS} at most; in the average they are percent too. POPE is "
        "the F1 score of all its questions together. VizWiz was asked on its validation split; LLaVA-1.5's number "
        "is of the test split.",
        "",
        "| benchmark | task of lmms-eval | questions |",
        "| --- | --- | ---: |",
        *(f"| {BENCHMARKS[task].data_set} | {task} | {results['tasks'][task]['num_questions']} |" for task in scores),
    ]
    return "\n".join(lines) + "\n"
