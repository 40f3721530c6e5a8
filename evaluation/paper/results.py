"""Table 1 of the paper (Vicuna-1.5-7B) with an additional row for a checkpoint."""

from collections.abc import Mapping

from ...files.escape import escape_markdown
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
# Ten subjects of at most 200 points. The paper mentions a normalization without details; this one reproduces its
# averages.
MME_POINTS = 2000


def paper_scores(scores: Mapping[str, Mapping]) -> dict[str, float]:
    """
    Converts scores to those of Table 1.

    Args:
        scores (`Mapping[str, Mapping]`):
            Metrics of lmms-eval by task.

    Returns:
        `dict[str, float]`: Scores by benchmark, in the order of the paper. A benchmark without its metric is missing,
        for example if `limit` excludes the perception part of MME.
    """
    return {
        task: benchmark.scale * scores[task][benchmark.metric]
        for task, benchmark in BENCHMARKS.items()
        if benchmark.metric in scores.get(task, {})
    }


def in_percent(task: str, score: float) -> float:
    """Converts a score of Table 1 to percent."""
    return 100 * score / MME_POINTS if task == "mme" else score


def average(scores: Mapping[str, float]) -> float | None:
    """
    Returns the paper's average over the ten benchmarks, with MME in percent.

    Args:
        scores (`Mapping[str, float]`):
            Scores of Table 1 by task.

    Returns:
        `float`, or `None` if a benchmark is missing.
    """
    if BENCHMARKS.keys() - scores.keys():
        return None
    percents = [in_percent(task, scores[task]) for task in BENCHMARKS]
    return sum(percents) / len(percents)


def table(name: str, scores: Mapping[str, float]) -> str:
    """
    Formats Table 1 with one more row and the columns of the evaluated benchmarks.

    Args:
        name (`str`):
            Name of the checkpoint.
        scores (`Mapping[str, float]`):
            Its scores of Table 1 by task.

    Returns:
        `str`: A Markdown table with aligned columns.
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
    Returns the content of `results.md`.

    Args:
        results (`Mapping`):
            Content of `results.json`.

    Returns:
        `str`: Markdown with the table and an explanation of its scores.
    """
    scores = results["paper_scores"]
    lines = [
        f"# {escape_markdown(results['folder'])} on the benchmarks of the paper",
        "",
        table(results["folder"], scores),
        "",
    ]
    if results["limit"] is not None:
        lines += [f"**Only the first {results['limit']} questions per benchmark: these are not its scores.**", ""]
    if unscored := [task for task in results["tasks"] if task in BENCHMARKS and task not in scores]:
        lines += [f"**No evaluated question of {', '.join(unscored)} counts for the table.**", ""]
    lines += [
        "The last row was measured here; the others are from the paper's Table 1 (Vicuna-1.5-7B). Scores are in "
        f"percent, except MME: points of its perception part, at most {MME_POINTS}, which the average converts to "
        "percent. POPE is the F1 score over all questions. VizWiz uses the validation split, but LLaVA-1.5's score is "
        "from the test split.",
        "",
        markdown_table(
            ["benchmark", "task of lmms-eval", "questions"],
            [[BENCHMARKS[task].data_set, task, str(results["tasks"][task]["num_questions"])] for task in scores],
        ),
    ]
    return "\n".join(lines) + "\n"
