"""The JSON file next to a trained model that records its settings, data and accuracy."""

from pathlib import Path

from ..files.atomic import read_json


def read_report(path: Path, wanted: dict) -> dict | None:
    """Returns the report in the file `path` if the file exists and contains all `wanted` entries."""
    report = read_json(path) if path.is_file() else {}
    return report if wanted.items() <= report.items() else None
