"""The report of a check: the rows, the bad rows with their problems, and the effect on training."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...files.markdown_table import markdown_table
from ..data.checked import CheckedRows
from ..sources.readers import find_reader


NUM_SHOWN = 10  # bad rows shown on the terminal; the files list all


@dataclass
class SourceReport:
    """
    The result for one data file or folder.

    Args:
        data_path (`str`):
            The file or folder.
        use (`str`):
            The stage that reads it, and the purpose.
        bad_records (`str`):
            The policy: `error` or `skip`.
        max_length (`int`, *optional*):
            Maximum number of tokens of a sample; `None` if rows are not truncated.
        problem (`str`, *optional*):
            The reason why the file cannot be read.
        rows (`CheckedRows`, *optional*):
            The rows, if the file can be read.
        places (`dict[int, dict]`, *optional*):
            `line` and `id` of each bad row, by its index.
        is_cached (`bool`, *optional*, defaults to `False`):
            Whether the result of an earlier check is used.
    """

    data_path: str
    use: str
    bad_records: str
    max_length: int | None = None
    problem: str | None = None
    rows: CheckedRows | None = None
    places: dict[int, dict] = field(default_factory=dict)
    is_cached: bool = False

    @property
    def is_refused(self) -> bool:
        """Whether training would stop."""
        if self.rows is None or not self.rows.problems:
            return self.rows is None
        return self.bad_records == "error" or len(self.rows.problems) == len(self.rows.num_images)

    @property
    def effect(self) -> str:
        """The effect on training."""
        if self.rows is None or self.is_refused:
            return "training stops"
        num_bad, num_rows = len(self.rows.problems), len(self.rows.num_images)
        return f"skips {num_bad:,} of {num_rows:,} rows" if num_bad else "uses all rows"

    def count_kinds(self) -> dict[str, int]:
        """Numbers of rows by their images and turns; bad rows count too."""
        assert self.rows is not None
        images, turns = np.array(self.rows.num_images), np.array(self.rows.num_turns)
        kinds = {"one image": images == 1, "several images": images > 1, "text only": images == 0}
        return {
            "rows": len(images),
            **{name: int(kind.sum()) for name, kind in kinds.items()},
            "several turns": int((turns > 2).sum()),
            "bad": len(self.rows.problems),
        }

    def measure_tokens(self) -> dict[str, int]:
        """Lengths of the good rows in tokens, and how many are truncated; empty without text."""
        assert self.rows is not None
        good = [count for index, count in enumerate(self.rows.num_tokens) if index not in self.rows.problems and count]
        if not good:
            return {}
        low, middle, p95, high = np.percentile(good, [0, 50, 95, 100], method="nearest").tolist()
        truncated = sum(count > self.max_length for count in good) if self.max_length else 0
        return {"min": low, "median": middle, "p95": p95, "max": high, "truncated": truncated}

    def list_bad(self) -> list[dict[str, Any]]:
        """Every bad row with its place and its reason."""
        problems = self.rows.problems if self.rows is not None else {}
        return [{"index": index, **self.places[index], "reason": reason} for index, reason in problems.items()]

    def to_dict(self) -> dict[str, Any]:
        content = {name: getattr(self, name) for name in ("data_path", "use", "bad_records", "effect")}
        if self.rows is None:
            return {**content, "problem": self.problem}
        content |= {"rows": self.count_kinds(), "max_length": self.max_length, "tokens": self.measure_tokens()}
        return {**content, "bad": self.list_bad()}


def _sources_table(sources: list[SourceReport]) -> str:
    kinds = next((source.count_kinds() for source in sources if source.rows is not None), {})
    rows = []
    for source in sources:
        counts = ["" for _ in kinds]
        if source.rows is not None:
            counts = [f"{count:,}" for count in source.count_kinds().values()]
        rows.append([source.data_path, source.use, source.bad_records, source.effect, *counts])
    return markdown_table(["data", "used for", "bad_records", "effect", *kinds], rows, num_text_columns=4)


def _tokens_table(sources: list[SourceReport]) -> str:
    rows, names = [], ["min", "median", "p95", "max", "truncated"]
    for source in sources:
        tokens = source.measure_tokens() if source.rows is not None else {}
        if tokens:
            limit = "" if source.max_length is None else str(source.max_length)
            rows.append([source.data_path, source.use, *(f"{tokens[name]:,}" for name in names), limit])
    return markdown_table(["tokens of", "used for", *names, "max_length"], rows, num_text_columns=2) if rows else ""


def _bad_table(source: SourceReport, bad: Iterable[dict]) -> str:
    rows = [[str(row["index"]), str(row["line"] or ""), repr(row["id"])[:200], row["reason"]] for row in bad]
    table = markdown_table(["index", "line", "id", "reason"], rows, num_text_columns=4)
    return f"Bad rows of {source.data_path}, {source.use}:\n\n{table}"


def write_markdown(sources: list[SourceReport], num_shown: int | None = None) -> str:
    """Returns the report as Markdown, with at most `num_shown` bad rows of each source."""
    parts = [_sources_table(sources), _tokens_table(sources)]
    parts += [source.problem for source in sources if source.problem is not None]
    for source in sources:
        bad = source.list_bad()
        if bad:
            parts.append(_bad_table(source, bad[:num_shown]))
        if num_shown is not None and len(bad) > num_shown:
            parts.append(f"and {len(bad) - num_shown:,} more, which the report lists.")
    return "\n\n".join(part for part in parts if part)


def find_lines(path: Path, num_rows: int) -> list[int] | None:
    """Returns the line of each row, from 1, if the file is a text with one row on each line."""
    if not path.is_file() or find_reader(path) is None:
        return None
    with path.open("rb") as file:
        lines = [number for number, line in enumerate(file, start=1) if line.strip()]
        file.seek(0)
        is_list = file.read(100).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
    return lines if len(lines) == num_rows and not is_list else None
