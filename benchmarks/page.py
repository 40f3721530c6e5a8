"""The page docs/speed.md, from the results of `bench.py` on each device."""

import json
from collections.abc import Iterator
from pathlib import Path

from hawaii.benchmarks.measurements import MEASUREMENTS
from hawaii.benchmarks.measuring.comparison import Comparison, show
from hawaii.files.atomic import write_text
from hawaii.files.markdown_table import markdown_table


INTRODUCTION = """# Speed

<!-- `make bench` writes this page; change benchmarks/page.py and benchmarks/measurements.py instead. -->

What HAWAII costs, compared with LLaVA and with other ways to compute the same. Both of a pair run alternately in one
process, after a check that their results are equal; where this differs, the section says so. Ratios are of the
medians, in brackets the smallest and the largest ratio of one round; below 1 the first of the two takes less. On a
CPU, milliseconds are those of the process, so other programs count little.

```bash
make bench
```

measures again on this machine, on a CPU in about ten minutes and on a GPU if there is one, and writes this page.
Weights are random and nothing is downloaded. vLLM is measured if `.venv-vllm` is there (`make .venv-vllm/installed`,
4 GB). Each comparison is also a command of its own with options for sizes and rounds, such as
`python benchmarks/model/vision_tower.py`.
"""


def read_results(folder: Path) -> Iterator[dict]:
    """Yields the record of each device."""
    for path in sorted(folder.glob("*.json")):
        yield json.loads(path.read_text(encoding="utf-8"))


def _row(comparison: Comparison) -> list[str]:
    ratio = f"{comparison.ratio:.2f}"
    if len(comparison.pairs) > 1:
        ratio += " [{:.2f}, {:.2f}]".format(*comparison.range)
    goal = ""
    if comparison.is_met is not None:
        bound = f"≤ {comparison.at_most:.2f}" if comparison.at_most is not None else f"≥ {comparison.at_least:.2f}"
        goal = bound if comparison.is_met else f"{bound} **missed**"
    costs = f"{' / '.join(map(show, comparison.medians))} {comparison.unit}".strip()
    return [comparison.subject, f"{comparison.first} / {comparison.second}", ratio, costs, goal]


def describe(record: dict) -> str:
    """The section of one device."""
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    sections, missed = [], []
    for name, measurement in MEASUREMENTS.items():
        if name not in record["results"]:
            continue
        result = record["results"][name]
        comparisons = [Comparison(**values) for values in result["comparisons"]]
        missed += [f"{measurement.title}: {each.subject}" for each in comparisons if each.is_met is False]
        sections += [f"### {measurement.title}", measurement.note]
        if options := ", ".join(f"{key} {value}" for key, value in result["options"].items()):
            sections[-1] += f" ({options}.)"
        if comparisons:
            header = ["what", "compared", "ratio", "costs", "goal"]
            sections.append(markdown_table(header, [_row(each) for each in comparisons], 2))
        if result["error"] is not None:
            sections.append(f"**It failed.** {result['error']}")
    verdict = f"Goals that are missed: {'; '.join(missed)}." if missed else "All goals are met."
    about = f"{record['date']}, commit {record['commit']}, {versions}; {record['minutes']} minutes."
    return "\n\n".join([f"## {record['device']}", f"{about} {verdict}", *sections])


def write_page(folder: Path, page: Path) -> None:
    """Writes the page about the results in a folder."""
    write_text(page, "\n\n".join([INTRODUCTION.rstrip(), *map(describe, read_results(folder))]) + "\n")
