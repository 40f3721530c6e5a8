"""Uploads a published folder to the Hub."""

import glob
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.utils import HFValidationError, validate_repo_id

from ..configuration.hub_hawaii import read_code
from ..files.manifest import check_listed_files, read_files
from ..files.run_contents import CARD_FILE, EVAL_RESULTS_FILE, FACTS_FILE, MANIFEST_FILE
from ..files.user_error import UserError, explain_errors
from .card import check_card, complete_card, read_card, save_card
from .card_options import CardOptions
from .published_files import check_code, check_model, find_attached, find_published


def find_files(folder: Path) -> list[str]:
    """
    Names of the files to upload.

    Raises:
        UserError: the folder is not a complete published folder of this package, a file other than the card is not as
            it was exported, a link leads out of the folder, or its weights are not finite.
    """
    for name in ("config.json", "configuration_hawaii.py", CARD_FILE):
        if not (folder / name).is_file():
            raise UserError(f"{folder} cannot be published: it has no {name}. Name the folder hub of a training run.")
    check_model(folder)
    check_code(folder)
    names = [*find_published(folder), *read_code(), FACTS_FILE, *find_attached(folder)]
    try:
        check_listed_files(folder)
        if added := [name for name in names if name not in read_files(folder)]:
            raise UserError(f"{folder / added[0]} is not among the files that were exported")
    except UserError as error:
        raise UserError(f"{error}. Run `hawaii train` again, which writes the folder anew from the stages.") from error
    scores = [EVAL_RESULTS_FILE] if (folder / EVAL_RESULTS_FILE).is_file() else []
    return [CARD_FILE, *scores, *names, MANIFEST_FILE]


def publish(folder: str, repo_id: str, private: bool = False, dry_run: bool = False, **options) -> str:
    """
    Uploads a published folder to the Hub and creates the repository if it does not exist. Prints the files and their
    sizes first. Other files in the folder are not uploaded.

    Args:
        folder (`str`):
            The folder `hub` of a training run.
        repo_id (`str`):
            `user/name`.
        private (`bool`, *optional*, defaults to `False`):
            Whether a new repository is private.
        dry_run (`bool`, *optional*, defaults to `False`):
            Whether to stop before anything is uploaded.
        options:
            Fields of [`CardOptions`], which are set in the metadata of the folder's card; not with `dry_run`.

    Returns:
        `str`: URL of the commit, or a sentence that nothing was uploaded.

    Raises:
        UserError: the name cannot be a repository's, [`find_files`] refuses the folder, its card names no license, or
            the upload fails.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(
            f"{repo_id} cannot be the name of a repository of the Hub: write user/name, in letters, digits, -, _ and ."
        ) from error
    path, card_options = Path(folder), CardOptions(**options)
    names = find_files(path)
    card = read_card(path)
    complete_card(card, card_options)
    check_card(path, card)
    if any(options.values()) and not dry_run:
        save_card(path, card)
    sizes = {name: (path / name).stat().st_size for name in names}
    for name, size in sizes.items():
        print(f"{size:15,} bytes  {name}")
    print(f"{sum(sizes.values()):15,} bytes  in {len(sizes)} files, for {repo_id}", flush=True)
    if others := sorted(each.name for each in path.iterdir() if each.name not in sizes):
        print(f"Not part of a published folder, and not uploaded: {', '.join(others)}", flush=True)
    if dry_run:
        return "Nothing was uploaded, because of --dry-run."
    with explain_errors(f"{folder} could not be uploaded to {repo_id}"):
        api = HfApi()
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            allow_patterns=[glob.escape(name) for name in names],
            commit_message="Upload HAWAII",
        )
        return str(commit)
