"""Markdown tables that are aligned as plain text, too."""

from collections.abc import Sequence

from .escape import escape_markdown


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], num_text_columns: int = 1) -> str:
    """
    A table. The first columns contain text and are aligned left; the others contain numbers and are aligned right.
    Titles and texts are escaped; numbers keep their markup, such as bold.
    """
    header = [escape_markdown(title) for title in header]
    rows = [[*map(escape_markdown, row[:num_text_columns]), *row[num_text_columns:]] for row in rows]
    columns = []
    for index, (title, *cells) in enumerate(zip(header, *rows)):
        is_text = index < num_text_columns
        width = max(1 if is_text else 2, *map(len, (title, *cells)))
        rule = "-" * width if is_text else "-" * (width - 1) + ":"
        columns.append([cell.ljust(width) if is_text else cell.rjust(width) for cell in (title, rule, *cells)])
    return "\n".join(f"| {' | '.join(line)} |" for line in zip(*columns))
