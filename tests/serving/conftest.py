"""Prints a table of the answers that `test_vllm.py` compared."""

import pytest


ROWS = pytest.StashKey[dict]()


@pytest.fixture
def record_answers(request):
    """A function that records how many answers of a folder, given in one way, were equal."""
    rows = request.config.stash.setdefault(ROWS, {})

    def record(folder: str, way: str, result: str) -> None:
        rows.setdefault(folder, {})[way] = result

    return record


def pytest_terminal_summary(terminalreporter, config):
    rows = config.stash.get(ROWS, {})
    if not rows:
        return
    ways = list(dict.fromkeys(way for row in rows.values() for way in row))
    table = [["folder", *ways], *([name, *(row.get(way, "") for way in ways)] for name, row in rows.items())]
    widths = [max(map(len, column)) for column in zip(*table)]
    terminalreporter.section("vLLM's answers that equal those of transformers")
    for line in table:
        terminalreporter.write_line("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())
