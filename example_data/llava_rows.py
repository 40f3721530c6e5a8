"""Rows of LLaVA's JSON about one image each."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..files.atomic import write_text


def make_row(image: str, number: int, turns: Iterable[tuple[str, str]]) -> dict:
    """
    Makes one row.

    Args:
        image (`str`):
            Path of the image under the folder of images; the row's id is its name without the suffix, and `number`.
        number (`int`):
            Which of the image's rows this is.
        turns (`Iterable[tuple[str, str]]`):
            What the human says and what the assistant answers; the image stands before the first.
    """
    row = {"id": f"{Path(image).stem}-{number}", "image": image, "conversations": []}
    for human, assistant in turns:
        row["conversations"] += [{"from": "human", "value": human}, {"from": "gpt", "value": assistant}]
    first = row["conversations"][0]
    first["value"] = "\n".join(part for part in ("<image>", first["value"]) if part)
    return row


def make_question_row(image: str, number: int, question: str, answer: str, question_type: str) -> dict:
    """A row of one question that tells its type; `image` and `number` as for [`make_row`]."""
    return make_row(image, number, [(question, answer)]) | {"question_type": question_type}


def make_rows(image: str, turns: Sequence[tuple[str, str]], turns_per_row: int) -> list[dict]:
    """
    Makes rows of about equal length of at most `turns_per_row` of the turns. Neighbours go to different rows where
    there are two: a question that was just answered would teach to repeat the answer.
    """
    num_rows = -(-len(turns) // turns_per_row)
    return [make_row(image, part, turns[part::num_rows]) for part in range(num_rows)]


def write_rows(rows: Sequence[dict], path: Path) -> None:
    """Writes LLaVA's JSON, one row a line."""
    write_text(path, "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
