"""Makes the folder to publish from a finished stage: the student and the files that its users need."""

import shutil
from pathlib import Path

from ..configuration.hub_hawaii import SavedWithCode, save_code
from ..files.atomic import atomic_folder, write_json
from ..files.manifest import check_manifest, read_files, write_manifest
from ..files.run_contents import CARD_FILE, FACTS_FILE
from ..files.user_error import UserError
from .card import write_card
from .published_files import check_model, find_published


# Parts of the run's identity (see `describe_stage`) that a published folder contains.
PUBLIC_IDENTITY = ("recipe", "data", "start", "step", "world_size")


def export(source: Path, destination: Path, facts: dict) -> None:
    """
    Makes the folder to publish.

    Args:
        source (`Path`):
            A finished stage: a folder in which `save_pretrained` of a model and its processor, or of an encoder and
            its image processor, wrote their files, with a manifest. It may contain other files that the manifest
            lists.
        destination (`Path`):
            Folder to write atomically; an existing one is replaced.
        facts (`dict`):
            Facts about training for the model card: `name`, `num_parameters` and `stages`.

    Raises:
        UserError: `source` does not agree with its manifest, lacks a file of a saved HAWAII, has a link that leads out
            of `source`, or has weights that are not finite; or a copied file differs from the saved one.
    """
    source = Path(source)
    try:
        identity = check_manifest(source)
    except UserError as error:
        raise UserError(f"{error}: a folder that has changed since it was saved is not exported.") from error
    check_model(source)
    with atomic_folder(destination) as folder:
        copied = find_published(source)
        for name in copied:
            shutil.copyfile(source / name, folder / name)
        save_code(folder, SavedWithCode)
        write_json(folder / FACTS_FILE, facts)
        write_card(folder)
        # Options may name folders of this machine.
        public = {name: value for name, value in identity.items() if name in PUBLIC_IDENTITY}
        write_manifest(folder, public, left_out=[CARD_FILE])
        saved, exported = read_files(source), read_files(folder)
        changed = [name for name in copied if exported[name] != saved[name]]
        if changed:
            raise UserError(
                f"The copy of {source / changed[0]} differs from the saved file: run the same command again."
            )
