"""The page docs/speed.md, from the results of `bench.py` on each device."""

import json
from collections.abc import Iterator
from pathlib import Path

from hawaii.benchmarks.measuring.comparison import Comparison, show
from hawaii.files.atomic import write_text
from hawaii.files.markdown_table import markdown_table


INTRODUCTION = """# Speed

<!-- `make bench` writes this page; change benchmarks/page.py instead. -->

What HAWAII costs, next to what it is compared with: in one process, alternately, after a check that both results are
equal. Ratios are of the medians, and in brackets those of the fastest and of the slowest round; below 1 the first of
the two takes less. On a CPU, milliseconds are those of the process, so other programs count little.

```bash
make bench
```

measures again on this machine (on a GPU if there is one, in less than ten minutes) and writes this page. Weights are
random and nothing is downloaded. With `.venv-vllm` (`make .venv-vllm/installed`, 4 GB) it measures vLLM, too. Each
comparison is also a command of its own, in [benchmarks](../benchmarks), with options for sizes and rounds.
"""
SECTIONS = {
    "encoder": "Encoder",
    "passes": "Passes of the encoder in training",
    "adapters": "Mixture of adapters",
    "generation": "Answers",
    "tiles": "Answers about tiles",
    "vllm": "vLLM",
    "operations": "Operations of a training step",
    "step": "Seconds of a training step",
    "text_loss": "Text loss",
    "monitoring": "Monitoring",
    "data_loader": "Data loader",
    "cache": "Cache of the teachers' features",
}
NOTES = {
    "encoder": "CLIP ViT-L/14-336: the student has the layers whose features LLaVA reads, CLIP one more.",
    "passes": "CLIP ViT-B/16 on a CPU, ViT-L/14-336 on a GPU, without gradients. With them: see the seconds below.",
    "adapters": "Three teachers' and three general adapters of rank 32, on the tokens of CLIP ViT-L/14-336. MoVE-KD's "
    "code chooses with `torch.where`; PEFT computes each adapter for the samples that use it.",
    "generation": "The same weights in transformers' LLaVA, and new adapters.",
    "tiles": "The same weights in transformers' LLaVA-NeXT.",
    "vllm": "CPU milliseconds of vLLM with its backend for models of transformers.",
    "operations": "CLIP ViT-L/14-336 and Vicuna 7B with the paper's three teachers, counted on modules without "
    "weights. The goals are for images of 320 and 448 pixels for ConvNeXt and EVA-02; the presets have 768 and 448. A "
    "sample is an image of 576 tokens and 64 of text: with more text all ratios are lower.",
    "step": "Both train the same small student; HAWAII's runs its encoder once for each teacher and once routed. A "
    "step has no optimizer.",
    "text_loss": "Scores at labels only, as in training, and at every position.",
    "monitoring": "Throughput, operations and the load of the adapters.",
    "data_loader": "A worker's sample, and the same in plain Pillow and transformers.",
    "cache": "A forward pass of one teacher, a small ViT-B, and reading its features, with the hash of the image.",
}


def read_results(folder: Path) -> Iterator[dict]:
    """Yields the record of each device, the CPU first."""
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
    costs = " / ".join(map(show, comparison.medians))
    return [comparison.subject, f"{comparison.first} / {comparison.second}", ratio, f"{costs} {comparison.unit}", goal]


def describe(record: dict) -> str:
    """The section of one device."""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    parts = [
        f"## {record['device']}",
        f"{record['date']}, commit {record['commit']}, {versions}; {record['minutes']} minutes.",
    ]
    for name, title in SECTIONS.items():
        if name not in record["results"]:
            continue
        comparisons = [Comparison(**values) for values in record["results"][name]["comparisons"]]
        header = ["what", "compared", "ratio", "costs", "goal"]
        parts += [f"### {title}", NOTES[name], markdown_table(header, [_row(each) for each in comparisons], 2)]
    missed = [
        f"{SECTIONS[name]}: {comparison.subject}"
        for name, result in record["results"].items()
        for comparison in (Comparison(**values) for values in result["comparisons"])
        if comparison.is_met is False
    ]
    verdict = f"Goals that are missed: {'; '.join(missed)}." if missed else "All goals are met."
    return "\n\n".join([*parts[:2], verdict, *parts[2:]])


def write_page(folder: Path, page: Path) -> None:
    """Writes the page about the results in a folder."""
    write_text(page, "\n\n".join([INTRODUCTION.rstrip(), *map(describe, read_results(folder))]) + "\n")
