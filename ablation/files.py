"""Tells whether the files that an ablation is made of are still the same."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from ..files.atomic import visible_files
from ..training.teachers.presets import expand_teachers


# A model's weights are known by their size alone: to read a language model's would take minutes. Smaller files of its
# folder say what it is, and an expert's what it has learned from.
MAX_BYTES_READ = 2**20
NAMES = ("data_path", "eval_data_path", "vision_tower", "language_model", "llava", "tokenizer", "chat_template")


def fingerprint(path: Path) -> str:
    """
    Another one where a file has changed; of a folder, where files came, went, changed their size or, if they are
    small, what they say.
    """
    found = hashlib.blake2b(digest_size=8)
    if path.is_file():
        with path.open("rb") as data:
            for block in iter(lambda: data.read(MAX_BYTES_READ), b""):
                found.update(block)
        return found.hexdigest()
    for file in filter(Path.is_file, visible_files(path)):
        size = file.stat().st_size
        found.update(f"{file.relative_to(path)} {size}\n".encode(errors="backslashreplace"))
        if size <= MAX_BYTES_READ:
            found.update(file.read_bytes())
    return found.hexdigest()


def fingerprints(stages: Mapping[str, dict], data_file: str | None) -> dict[str, str]:
    """
    Of the models, teachers and data that the stages of a recipe name on this machine, and of the questions asked.

    Args:
        stages (`Mapping[str, dict]`):
            What [`read_recipe`] gives.
        data_file (`str`, *optional*):
            The questions.

    Returns:
        `dict[str, str]`: by path, as the recipe has it; what is on the Hub is left out, and so are images.
    """
    paths = {data_file, *(options.get(name) for options in stages.values() for name in NAMES)}
    for options in stages.values():
        paths |= {teacher.checkpoint for teacher in expand_teachers(options.get("teachers"))}
    # YAML takes a folder named 2024 for a number.
    paths = sorted(str(path) for path in paths if path is not None)
    # Not Path.exists: a chat template's own words are longer than a file's name may be.
    return {path: fingerprint(Path(path)) for path in paths if os.path.exists(path)}
