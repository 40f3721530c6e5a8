"""The table of an ablation, as the paper's Table 2 reads."""

from collections.abc import Mapping, Sequence

from ..files.markdown_table import markdown_table
from .statistics import AVERAGE


NOTHING = "-"


def _score(cell: Mapping, is_best: bool) -> str:
    mean = f"**{cell['mean']:.1f}**" if is_best else f"{cell['mean']:.1f}"
    return mean if cell["deviation"] is None else f"{mean} ± {cell['deviation']:.1f}"


def _difference(found: Mapping | None) -> str:
    if found is None:
        return NOTHING
    if found["low"] is None:
        return f"{found['difference']:+.1f} [n/a]"
    return f"{found['difference']:+.1f} [{found['low']:+.1f}, {found['high']:+.1f}]"


def _row(row: Mapping, labels: Sequence[str], best: Mapping[str, float], num_seeds: int) -> list[str]:
    done = len(row["seeds"])
    seeds = str(done) if done == num_seeds else f"{done} of {num_seeds}"
    if not row["columns"]:
        return [row["label"], *[NOTHING] * (len(labels) + 2), seeds]
    cells = [row["columns"][label] for label in labels]
    scores = [_score(cell, cell["mean"] == best.get(label)) for cell, label in zip(cells, labels)]
    return [
        row["label"],
        *scores,
        _difference(cells[-1]["against_baseline"]),
        f"{row['seconds_per_step']['mean']:.3g}",
        seeds,
    ]


def _explain_interval(comparisons: Sequence[Mapping]) -> str:
    kinds = {tuple(comparison["resampled"]) for comparison in comparisons}
    if kinds == {("images",)}:
        return "95 % interval of a paired bootstrap over images alone; one seed says nothing of another"
    if kinds == {("seeds",)}:
        return "95 % interval of a paired bootstrap over seeds alone: a task's score is no mean over its questions"
    if kinds == {()}:
        return "95 % interval missing: there is one seed, and a task's score is no mean over its questions"
    as_far = "" if kinds == {("images", "seeds")} else ", as far as a row has several of both"
    return f"95 % interval of a paired bootstrap over images and seeds{as_far}"


def _notes(ablation: Mapping, filled: Sequence[Mapping], baseline: str) -> list[str]:
    columns = ablation["columns"]
    last = columns[-1]["label"]
    has_mme = any("mme" in column["tasks"] for column in columns)
    unit = "in percent (MME: points, and in the average percent of them)" if has_mme else "in percent"
    notes = [f"Mean over seeds ± their standard deviation, {unit}; the best of each column is bold."]
    if last == AVERAGE:
        tasks = columns[-1]["tasks"]
        notes.append(f"{AVERAGE} of the {'tasks' if len(tasks) > 1 else 'questions, whatever their type'}.")
    found = [row["columns"][last]["against_baseline"] for row in filled]
    if comparisons := [comparison for comparison in found if comparison is not None]:
        of_what = f" in {last}" if len(columns) > 1 else ""
        notes.append(f"vs. {baseline}: the difference{of_what}, with the {_explain_interval(comparisons)}.")
    if ablation["limit"] is not None:
        notes.append(f"**Of each task only the first {ablation['limit']} questions were asked.**")
    missing = {row["label"]: row["missing_seeds"] for row in ablation["rows"] if row["missing_seeds"]}
    if missing:
        said = "; ".join(f"{label} with seed {', '.join(map(str, seeds))}" for label, seeds in missing.items())
        notes.append(f"**Not all runs are done. Missing: {said}.**")
    return notes


def make_table(ablation: Mapping) -> str:
    """
    Args:
        ablation (`Mapping`):
            What `ablation.json` holds.

    Returns:
        `str`: the table, and below it what its numbers are.
    """
    rows, labels = ablation["rows"], [column["label"] for column in ablation["columns"]]
    filled = [row for row in rows if row["columns"]]
    means = {label: [row["columns"][label]["mean"] for row in filled] for label in labels}
    best = {label: max(values) for label, values in means.items() if max(values) > min(values)}
    baseline = next(row["label"] for row in rows if row["name"] == ablation["baseline"])
    header = ["Methods", *labels, f"vs. {baseline}", "s/step", "seeds"]
    table = markdown_table(header, [_row(row, labels, best, len(ablation["seeds"])) for row in rows])
    # A line of its own for each note, in Markdown too.
    return f"{table}\n\n" + "\n\n".join(_notes(ablation, filled, baseline))
