"""From a finished stage's folder to the folder that is published: nothing of training goes along."""

import shutil
from pathlib import Path

from ..files.atomic import atomic_folder, write_json
from ..files.run_contents import FACTS_FILE
from .card import read_config, write_card


# What transformers and this project's H files need; all else stays behind.
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
            A folder that `save_pretrained` of model and processor wrote, or of an encoder and its image processor; it
            may hold other files.
        destination (`Path`):
            Appears whole, in place of what was there.
        facts (`dict`):
            What training cost and used, for the model card: `name`, `num_parameters` and `stages`.

    Raises:
        FileNotFoundError: `source` holds no checkpoint.
    """
    source = Path(source)
    is_encoder = (source / "config.json").is_file() and "text_config" not in read_config(source)
    for name in ("config.json", "preprocessor_config.json" if is_encoder else "processor_config.json"):
        if not (source / name).is_file():
            raise FileNotFoundError(f"{source} is no saved HAWAII: it has no {name}.")
    with atomic_folder(destination) as folder:
        for pattern in PUBLISHED:
            for path in source.glob(pattern):
                shutil.copyfile(path, folder / path.name)
        write_json(folder / FACTS_FILE, facts)
        write_card(folder)
