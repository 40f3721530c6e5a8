"""Makes the folder to publish from a finished stage: the student and what its users need, nothing of training."""

import shutil
from pathlib import Path

from ..configuration.hub_hawaii import SavedWithCode, save_code
from ..files.atomic import atomic_folder, write_json
from ..files.run_contents import FACTS_FILE
from .card import write_card
from .published_files import check_model, find_published


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
        UserError: `source` lacks a file of a saved HAWAII, one is damaged or a link that leads out of `source`, or its
            weights are not finite.
    """
    source = Path(source)
    check_model(source)
    with atomic_folder(destination) as folder:
        for name in find_published(source):
            shutil.copyfile(source / name, folder / name)
        save_code(folder, SavedWithCode)
        write_json(folder / FACTS_FILE, facts)
        write_card(folder)
