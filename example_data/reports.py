"""The JSON beside what a data set's command has trained: how that was made, of what, and how well it does."""

import json
from pathlib import Path


def read_report(path: Path, wanted: dict) -> dict | None:
    """The report in the file `path`, if there is one and it has everything that is `wanted`."""
    report = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return report if wanted.items() <= report.items() else None
