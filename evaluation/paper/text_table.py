"""Tables in Markdown that also read well as they are."""

from collections.abc import Sequence


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    numbers = [f"{cell:>{width}}" for cell, width in zip(cells[1:], widths[1:])]
    return f"| {' | '.join([f'{cells[0]:<{widths[0]}}', *numbers])} |"


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is words and whose others are numbers."""
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    rule = f"| {'-' * widths[0]} | {' | '.join('-' * (width - 1) + ':' for width in widths[1:])} |"
    return "\n".join([_line(header, widths), rule, *(_line(row, widths) for row in rows)])
