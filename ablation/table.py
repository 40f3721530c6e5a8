"""The table of an ablation, in the form of the paper's Table 2."""

from collections.abc import Mapping, Sequence

from ..files.escape import escape_markdown
from ..files.markdown_table import markdown_table
from .statistics import AVERAGE


MISSING = "-"


def _score(cell: Mapping, is_best: bool) -> str:
    mean = f"**{cell['mean']:.1f}**" if is_best else f"{cell['mean']:.1f}"
    return mean if cell["deviation"] is None else f"{mean} ± {cell['deviation']:.1f}"


def _difference(comparison: Mapping | None) -> str:
    if comparison is None:
        return MISSING
    if comparison["low"] is None:
        return f"{comparison['difference']:+.1f} [n/a]"
    return f"{comparison['difference']:+.1f} [{comparison['low']:+.1f}, {comparison['high']:+.1f}]"


def _share(row: Mapping) -> str:
    return MISSING if row.get("teacher_share") is None else f"{row['teacher_share']['mean']:.0%}"


def _row(
    row: Mapping, labels: Sequence[str], best: Mapping[str, float], num_seeds: int, has_shares: bool
) -> list[str]:
    done = len(row["seeds"])
    seeds = str(done) if done == num_seeds else f"{done} of {num_seeds}"
    shares = [_share(row)] if has_shares else []
    if not row["columns"]:
        return [row["label"], *[MISSING] * (len(labels) + 2), *shares, seeds]
    cells = [row["columns"][label] for label in labels]
    scores = [_score(cell, cell["mean"] == best.get(label)) for cell, label in zip(cells, labels)]
    return [
        row["label"],
        *scores,
        _difference(cells[-1]["against_baseline"]),
        f"{row['seconds_per_step']['mean']:.3g}",
        *shares,
        seeds,
    ]


def _explain_interval(comparisons: Sequence[Mapping]) -> str:
    resampled = {tuple(comparison["resampled"]) for comparison in comparisons}
    not_a_mean = "the score of a task is not the mean over its questions"
    if resampled == {("images",)}:
        return "with the 95 % interval of a paired bootstrap over images; it does not cover other seeds"
    if resampled == {("seeds",)}:
        return f"with the 95 % interval of a paired bootstrap over seeds only: {not_a_mean}"
    if resampled == {()}:
        return f"without an interval: there is only one seed, and {not_a_mean}"
    condition = "" if resampled == {("images", "seeds")} else ", for rows that have several of both"
    return f"with the 95 % interval of a paired bootstrap over images and seeds{condition}"


def _notes(ablation: Mapping, filled: Sequence[Mapping], baseline: str, has_shares: bool) -> list[str]:
    columns = ablation["columns"]
    last = columns[-1]["label"]
    has_mme = any("mme" in column["tasks"] for column in columns)
    unit = "in percent (MME in points, but in percent in the average)" if has_mme else "in percent"
    notes = [f"Mean over seeds ± their standard deviation, {unit}; the best value of each column is bold."]
    if last == AVERAGE:
        tasks = columns[-1]["tasks"]
        notes.append(f"{AVERAGE} is over the {'tasks' if len(tasks) > 1 else 'questions of all types'}.")
    comparisons = [row["columns"][last]["against_baseline"] for row in filled]
    if comparisons := [comparison for comparison in comparisons if comparison is not None]:
        column = f" in {escape_markdown(last)}" if len(columns) > 1 else ""
        notes.append(f"vs. {baseline}: the difference{column}, {_explain_interval(comparisons)}.")
    if has_shares:
        notes.append("teachers: the share of the teachers' forward passes in the seconds of a step.")
    if ablation["limit"] is not None:
        notes.append(f"**Only the first {ablation['limit']} questions of each task were used.**")
    missing = {row["label"]: row["missing_seeds"] for row in ablation["rows"] if row["missing_seeds"]}
    if missing:
        runs = "; ".join(f"{label} with seed {', '.join(map(str, seeds))}" for label, seeds in missing.items())
        notes.append(f"**Not all runs are finished. Missing: {runs}.**")
    return notes


def make_table(ablation: Mapping) -> str:
    """
    Formats the table of an ablation.

    Args:
        ablation (`Mapping`):
            Content of `ablation.json`.

    Returns:
        `str`: the table in Markdown, and below it notes that explain its numbers.
    """
    rows, labels = ablation["rows"], [column["label"] for column in ablation["columns"]]
    filled = [row for row in rows if row["columns"]]
    means = {label: [row["columns"][label]["mean"] for row in filled] for label in labels}
    best = {label: max(values) for label, values in means.items() if max(values) > min(values)}
    baseline = next(row["label"] for row in rows if row["name"] == ablation["baseline"])
    # Where no teacher runs, as with cached features, its share says nothing.
    has_shares = any((row.get("teacher_share") or {}).get("mean") for row in filled)
    header = ["Methods", *labels, f"vs. {baseline}", "s/step", *(["teachers"] if has_shares else []), "seeds"]
    table = markdown_table(header, [_row(row, labels, best, len(ablation["seeds"]), has_shares) for row in rows])
    # Blank lines, since Markdown would join the notes into one paragraph.
    return f"{table}\n\n" + "\n\n".join(_notes(ablation, filled, baseline, has_shares))
