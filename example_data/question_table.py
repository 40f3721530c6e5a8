"""The table of test questions, each with its image, that a task of lmms-eval reads."""

from collections.abc import Sequence
from pathlib import Path

from ..files.atomic import atomic_file


def write_questions(questions: Sequence[dict], images: dict[str, bytes], path: Path) -> None:
    """
    Writes the table as a parquet file.

    Args:
        questions (`Sequence[dict]`):
            `question`, `answer`, `question_type` and `image_id` of each; `question_id` is its number.
        images (`dict[str, bytes]`):
            Each image as PNG, by its id.
        path (`Path`):
            The file.
    """
    import datasets

    rows = [
        {
            "question_id": number,
            **question,
            "image": {"bytes": images[question["image_id"]], "path": f"{question['image_id']}.png"},
        }
        for number, question in enumerate(questions)
    ]
    table = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    with atomic_file(path) as temporary:
        table.to_parquet(temporary)
