"""Makes the folder to publish from a finished stage: the student and the files that its users need."""

import shutil
from collections.abc import Callable
from pathlib import Path

from ..configuration.hub_hawaii import CODE_SUFFIX, SavedWithCode, read_code, save_code
from ..files.atomic import atomic_folder, write_json
from ..files.manifest import check_listed_files, check_manifest, read_files, write_manifest
from ..files.run_contents import CARD_FILE, FACTS_FILE
from ..files.user_error import UserError
from .card import fill_card, renew_hashes, write_card
from .published_files import check_model, find_published


# Parts of the run's identity (see `describe_stage`) that a published folder contains.
PUBLIC_IDENTITY = ("recipe", "data", "start", "step", "world_size")


def _is_exported(source: Path, folder: Path, identity: dict) -> bool:
    """Whether a folder is an undamaged export of the same files. Users may have added files and removed the card."""
    try:
        if check_listed_files(folder) != identity:
            return False
    except (UserError, OSError):
        return False
    saved, exported = read_files(source), read_files(folder)
    return all(exported.get(name) == saved[name] for name in find_published(source))


def _has_installed_code(folder: Path) -> bool:
    names = [name for name in read_files(folder) if name.endswith(CODE_SUFFIX)]
    return {name: (folder / name).read_bytes() for name in names} == {
        name: source.encode() for name, source in read_code().items()
    }


def _renew_code(destination: Path, identity: dict) -> None:
    """Replaces the code of an export by the installed code. The user's files and the text of the card are kept."""
    listed = read_files(destination)
    with atomic_folder(destination) as folder:
        for name in (name for name in [*listed, CARD_FILE] if not name.endswith(CODE_SUFFIX)):
            shutil.copyfile(destination / name, folder / name)
        save_code(folder, SavedWithCode)
        renew_hashes(folder)
        write_manifest(folder, identity, left_out=[CARD_FILE])
        # The user's files come last, because the card and the manifest do not list them.
        replaced = {*listed, *(path.name for path in folder.iterdir())}
        for path in (path for path in destination.iterdir() if path.name not in replaced):
            if path.is_dir() and not path.is_symlink():
                shutil.copytree(path, folder / path.name, symlinks=True)
            else:
                shutil.copy2(path, folder / path.name, follow_symlinks=False)


def _attach_nothing(folder: Path) -> None:
    pass


def export(source: Path, destination: Path, facts: dict, attach: Callable[[Path], None] = _attach_nothing) -> bool:
    """
    Makes the folder to publish, unless there is one of the same model already: its card may have been edited, and
    files added. Only what it lacks is then added: a card, metadata of its card, the installed code.

    Args:
        source (`Path`):
            A finished stage: a folder in which `save_pretrained` of a model and its processor, or of an encoder and
            its image processor, wrote their files, with a manifest. It may contain other files that the manifest
            lists.
        destination (`Path`):
            Folder to write atomically; one of another model, or with a damaged file, is replaced.
        facts (`dict`):
            Facts about training for the model card: `name`, `num_parameters` and `stages`, and in `card` those about
            the parts of the model, see [`make_metadata`].
        attach (`Callable[[Path], None]`, *optional*):
            Writes the recipe and the loss curves into a new folder.

    Returns:
        `bool`: Whether something was written.

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
    # Options may name folders of this machine.
    public = {name: value for name, value in identity.items() if name in PUBLIC_IDENTITY}
    if _is_exported(source, destination, public):
        has_card, has_code = (destination / CARD_FILE).is_file(), _has_installed_code(destination)
        if not has_card:
            write_card(destination)
        if not has_code:
            _renew_code(destination, public)
        return fill_card(destination, facts.get("card") or {}) or not (has_card and has_code)
    with atomic_folder(destination) as folder:
        copied = find_published(source)
        for name in copied:
            shutil.copyfile(source / name, folder / name)
        save_code(folder, SavedWithCode)
        write_json(folder / FACTS_FILE, facts)
        attach(folder)
        write_card(folder)
        write_manifest(folder, public, left_out=[CARD_FILE])
        saved, exported = read_files(source), read_files(folder)
        changed = [name for name in copied if exported[name] != saved[name]]
        if changed:
            raise UserError(
                f"The copy of {source / changed[0]} differs from the saved file: run the same command again."
            )
    return True
