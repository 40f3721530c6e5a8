"""The table of test questions with their images that the task files of lmms-eval read."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..files.atomic import atomic_file


def write_questions(questions: Iterable[tuple[str, Any]], images: dict[str, bytes], path: Path) -> None:
    """
    Writes the table as a Parquet file.

    Args:
        questions (`Iterable[tuple[str, Question]]`):
            The id of an image, and a question about it with its `text`, `answer` and `type`.
        images (`dict[str, bytes]`):
            PNG files by the image's id.
        path (`Path`):
            File to write.
    """
    import datasets

    rows = [
        {
            "question_id": number,
            "question": question.text,
            "answer": question.answer,
            "question_type": question.type,
            "image_id": image_id,
            "image": {"bytes": images[image_id], "path": f"{image_id}.png"},
        }
        for number, (image_id, question) in enumerate(questions)
    ]
    table = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    with atomic_file(path) as temporary:
        table.to_parquet(temporary)
