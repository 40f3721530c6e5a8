"""Markdown tables that are aligned as plain text, too."""

from collections.abc import Sequence


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], num_text_columns: int = 1) -> str:
    """
    A table whose first columns are aligned to the left and whose other columns, numbers, to the right. A cell keeps
    its markup but not its line ends, and its `|` do not end it.
    """
    header, *rows = ([" ".join(cell.split()).replace("|", r"\|") for cell in line] for line in (header, *rows))
    columns = []
    for index, (title, *cells) in enumerate(zip(header, *rows)):
        is_text = index < num_text_columns
        width = max(1 if is_text else 2, *map(len, (title, *cells)))
        rule = "-" * width if is_text else "-" * (width - 1) + ":"
        columns.append([cell.ljust(width) if is_text else cell.rjust(width) for cell in (title, rule, *cells)])
    return "\n".join(f"| {' | '.join(line)} |" for line in zip(*columns))
