"""Fingerprints of the files that an ablation uses, to notice changes."""

import os
from pathlib import Path

from ..files.atomic import visible_files
from ..files.digest import digest
from ..training.recipes.recipe import Recipe


# Larger files of a folder, the weights, are compared by size: reading a language model would take minutes. The small
# files of an expert's folder include the digest of the data it was trained on.
MAX_BYTES_READ = 2**20


def fingerprint(path: Path) -> str:
    """A hash of a file's content, or of the names, sizes and small files of a folder."""
    if path.is_file():
        return digest(path)
    parts = []
    for file in filter(Path.is_file, visible_files(path)):
        size = file.stat().st_size
        parts.append(f"{file.relative_to(path)} {size}\n".encode(errors="backslashreplace"))
        parts += [file] if size <= MAX_BYTES_READ else []
    return digest(*parts)


def fingerprints(recipe: Recipe, data_file: str | None) -> dict[str, str]:
    """
    Fingerprints by path of the local models, teachers and data of a recipe, and of the questions. Hub ids and images
    are left out.
    """
    paths = {data_file}
    for stage in recipe.stages.values():
        model, data = stage.model, stage.data
        paths |= {model.vision_tower, model.language_model, model.llava, model.tokenizer}
        paths |= {data.eval_data_path, data.chat_template, *(source.path for source in data.sources)}
        paths |= {teacher.checkpoint for teacher in stage.teachers}
    # os.path.exists, since an inline chat template is too long for Path.exists.
    return {path: fingerprint(Path(path)) for path in sorted(filter(None, paths)) if os.path.exists(path)}
