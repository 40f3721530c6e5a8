"""Rows of LLaVA's JSON about one image each."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..files.atomic import write_text


TURNS_PER_ROW = 2  # Few, so that the answers before a question rarely reveal its own answer.


def make_row(image: str, number: int, turns: Iterable[tuple[str, str]]) -> dict:
    """
    Makes one row.

    Args:
        image (`str`):
            Path of the image in the folder of images. The row's id is the file's stem and `number`.
        number (`int`):
            Number of the row among the image's rows.
        turns (`Iterable[tuple[str, str]]`):
            Texts of the human and answers of the assistant. The image token is added before the first text.
    """
    row = {"id": f"{Path(image).stem}-{number}", "image": image, "conversations": []}
    for human, assistant in turns:
        row["conversations"] += [{"from": "human", "value": human}, {"from": "gpt", "value": assistant}]
    first = row["conversations"][0]
    first["value"] = "\n".join(part for part in ("<image>", first["value"]) if part)
    return row


def make_caption_row(image: str, caption: str) -> dict:
    """Makes a row with a caption instead of a question and an answer."""
    return make_row(image, 0, [("", caption)])


def make_question_row(image: str, number: int, question) -> dict:
    """Makes a row with the `text`, `answer` and `type` of one question; the other arguments as for [`make_row`]."""
    return make_row(image, number, [(question.text, question.answer)]) | {"question_type": question.type}


def make_rows(image: str, turns: Sequence[tuple[str, str]]) -> list[dict]:
    """
    Distributes turns over rows of about equal length with at most `TURNS_PER_ROW` turns. Consecutive turns go to
    different rows if there are two, because a repeated question would teach the model to repeat its answer.
    """
    num_rows = -(-len(turns) // TURNS_PER_ROW)
    return [make_row(image, part, turns[part::num_rows]) for part in range(num_rows)]


def write_rows(rows: Sequence[dict], path: Path) -> None:
    """Writes LLaVA's JSON with one row per line."""
    write_text(path, "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
