"""Makes the folder to publish from a finished stage: the student and what its users need, nothing of training."""

import shutil
from pathlib import Path

from ..files.atomic import atomic_folder, write_json
from ..files.run_contents import FACTS_FILE
from ..files.user_error import UserError
from .card import read_config, write_card


# Files that transformers and this project's H files read; all others are left out.
PUBLISHED = (
    "*_hawaii.py",
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "*processor_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


def export(source: Path, destination: Path, facts: dict) -> None:
    """
    Makes the folder to publish.

    Args:
        source (`Path`):
            Folder in which `save_pretrained` of a model and its processor, or of an encoder and its image processor,
            wrote their files; it may contain others.
        destination (`Path`):
            Folder to write atomically; an existing one is replaced.
        facts (`dict`):
            Facts about training for the model card: `name`, `num_parameters` and `stages`.

    Raises:
        UserError: `source` lacks a file of a saved HAWAII.
    """
    source = Path(source)
    is_encoder = (source / "config.json").is_file() and "text_config" not in read_config(source)
    for name in ("config.json", "preprocessor_config.json" if is_encoder else "processor_config.json"):
        if not (source / name).is_file():
            raise UserError(f"{source} is not a saved HAWAII: it has no {name}.")
    with atomic_folder(destination) as folder:
        for pattern in PUBLISHED:
            for path in source.glob(pattern):
                shutil.copyfile(path, folder / path.name)
        write_json(folder / FACTS_FILE, facts)
        write_card(folder)
