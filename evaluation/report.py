"""The printed report of an evaluation: scores, paths, and a command that asks the model a question."""

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from .paper.results import table


SECONDS = {"training": "train_seconds", "evaluation": "evaluate_seconds"}
# Words that a model trained on the task knows.
QUESTIONS = {"easy_vqa": "what color is the shape?", "emoji_vqa": "how many drawings are there?"}
QUESTION = "What is in this image?"


def _number(value) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else str(value)


def _score_rows(task: str, scores: dict) -> Iterator[tuple[str, str]]:
    yield task, f"{scores['num_questions']:,} questions" if "num_questions" in scores else ""
    for metric, value in scores.items():
        if isinstance(value, dict):
            yield from ((f"    {part}", _number(part_value)) for part, part_value in value.items())
        elif metric != "num_questions":
            yield f"  {metric}", _number(value)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _program() -> str:
    """Returns the `hawaii` command of the current environment as it is typed in the current folder."""
    program = Path(sys.executable).with_name("hawaii")
    if not program.is_file():
        return f"{shlex.quote(sys.executable)} -m hawaii"
    return shlex.quote(str(program.relative_to(Path.cwd()) if program.is_relative_to(Path.cwd()) else program))


def report(results: dict, output_dir: Path) -> str:
    """
    Formats the results of an evaluation.

    Args:
        results (`dict`):
            Content of `results.json`.
        output_dir (`Path`):
            Folder of `results.json`.

    Returns:
        `str`: The paper's table if its benchmarks were evaluated, a table of two columns, and a command to paste.
    """
    paper_scores = results.get("paper_scores", {})
    tasks = {task: scores for task, scores in results["tasks"].items() if task not in paper_scores}
    rows = [row for task, scores in tasks.items() for row in _score_rows(task, scores)]
    rows.append(("parameters", f"{results['num_parameters']:,}"))
    rows.extend((f"{phase} time", _duration(results[key])) for phase, key in SECONDS.items() if key in results)
    rows.extend([("model", results["folder"]), ("results", str(output_dir / "results.json"))])
    width = max(len(name) for name, _ in rows) + 2
    question = next((QUESTIONS[task] for task in results["tasks"] if task in QUESTIONS), QUESTION)
    lines = ["", *([table(results["folder"], paper_scores), ""] if paper_scores else [])]
    lines += [*(f"{name:<{width}}{value}" for name, value in rows), ""]
    lines.append("To ask about your own image:")
    lines.append(f'  {_program()} chat {shlex.quote(results["folder"])} --image your.png --question "{question}"')
    return "\n".join(lines)
