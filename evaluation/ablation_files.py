"""Tells whether the files that an ablation is made of are still the same."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..training.teacher_presets import expand_teachers


# What is larger is weights or pictures. To read a language model's would take minutes, and beside them lies how they
# came about: a report, a configuration.
MAX_BYTES_READ = 2**20
NAMES = ("vision_tower", "language_model", "llava", "data_path", "eval_data_path")


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    for folder, folders, names in os.walk(path):
        folders.sort()
        yield from (Path(folder, name) for name in sorted(names))


def fingerprint(path: Path) -> str:
    """Of a file or a folder: another one where files came, went, changed their size or, being small, what they say."""
    found = hashlib.blake2b(digest_size=8)
    for file in _files(path):
        size = file.stat().st_size
        found.update(f"{file.relative_to(path)} {size}\n".encode(errors="backslashreplace"))
        if size <= MAX_BYTES_READ:
            found.update(file.read_bytes())
    return found.hexdigest()


def fingerprints(stages: Mapping[str, dict], data_file: str | None) -> dict[str, str]:
    """
    Of all that the stages of a recipe name on this machine but for images, and of the questions that are asked.

    Args:
        stages (`Mapping[str, dict]`):
            What [`read_recipe`] gives.
        data_file (`str`, *optional*):
            The questions.

    Returns:
        `dict[str, str]`: by path, as the recipe has it; what is on the Hub is left out.
    """
    paths = {data_file, *(options.get(name) for options in stages.values() for name in NAMES)}
    for options in stages.values():
        paths |= {teacher.checkpoint for teacher in expand_teachers(options.get("teachers"))}
    return {path: fingerprint(Path(path)) for path in sorted(filter(None, paths)) if Path(path).exists()}
