"""Uploads a published folder to the Hub."""

import re
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.utils import HFValidationError, validate_repo_id

from ..configuration.hub_hawaii import read_code
from ..configuration.push_hawaii import FILE_GROUPS, Upload, commit_upload, plan_upload
from ..files.escape import flatten
from ..files.manifest import check_listed_files, read_files
from ..files.run_contents import CARD_FILE, EVAL_RESULTS_FILE, FACTS_FILE, MANIFEST_FILE
from ..files.user_error import UserError
from .card import check_card, complete_card, read_card, save_card
from .card_options import CardOptions
from .eval_results import read_entries
from .hub_errors import explain_hub_errors
from .published_files import check_code, check_model, check_secrets, find_attached, find_published


def find_files(folder: Path) -> list[str]:
    """
    Names of the files to upload.

    Raises:
        UserError: the folder is not a complete published folder of this package, a file other than the card is not as
            it was exported, its scores cannot be read, a link leads out of the folder, its weights are not finite, or
            a file contains an access token, a password of an address, or the path of the home folder.
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
    read_entries(folder)
    scores = [EVAL_RESULTS_FILE] if (folder / EVAL_RESULTS_FILE).is_file() else []
    names = [CARD_FILE, *scores, *names, MANIFEST_FILE]
    check_secrets(folder, names)
    return names


def _check_names(repo_id: str, tag: str | None) -> None:
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(
            f"{repo_id} cannot be the name of a repository of the Hub: write user/name, in letters, digits, -, _ and ."
        ) from error
    if tag is not None and not re.fullmatch(r"\w+([.-]\w+)*", tag):
        raise UserError(f"{tag} cannot be the name of a tag: write letters, digits, -, _ and ., as in v1.0")


def _check_tag(api: HfApi, repo_id: str, tag: str, upload: Upload) -> bool:
    """Whether the tag exists already. Raises a `UserError` if it is not that of the version to publish."""
    refs = api.list_repo_refs(repo_id)
    if tag in [branch.name for branch in refs.branches]:
        raise UserError(f"{tag} is a branch of {repo_id}: give the tag another name.")
    commits = {found.name: found.target_commit for found in refs.tags}
    if tag in commits and (upload.is_needed or commits[tag] != upload.parent):
        raise UserError(
            f"{repo_id} has a tag {tag}, of the commit {commits[tag]}, which is not this version: give a new version "
            f"another tag, or remove the tag with `hf repos tag delete {repo_id} {tag}`."
        )
    return tag in commits


def publish(
    folder: str,
    repo_id: str,
    private: bool = False,
    tag: str | None = None,
    dry_run: bool = False,
    token: str | None = None,
    commit_message: str = "Upload HAWAII",
    **options,
) -> str:
    """
    Uploads a published folder to the Hub in one commit and creates the repository if it does not exist. Prints the
    files and their sizes first. Other files in the folder are not uploaded. Files of an earlier version in the
    repository are deleted in the same commit, other files are kept.

    Args:
        folder (`str`):
            The folder `hub` of a training run.
        repo_id (`str`):
            `user/name`.
        private (`bool`, *optional*, defaults to `False`):
            Whether a new repository is private. An existing one must be.
        tag (`str`, *optional*):
            Tag of the version.
        dry_run (`bool`, *optional*, defaults to `False`):
            Whether to stop before anything is uploaded.
        token (`str`, *optional*):
            Token of the Hub; the saved one if not given.
        commit_message (`str`, *optional*, defaults to `"Upload HAWAII"`):
            Subject of the commit.
        options:
            Fields of [`CardOptions`], which are set in the metadata of the folder's card; not with `dry_run`.

    Returns:
        `str`: The commit and how to pin it, or a sentence that nothing was uploaded.

    Raises:
        UserError: a name is not valid, [`find_files`] refuses the folder, its card names no license, the tag is of
            another version, or the upload fails. The repository is then as before; a repetition does not send complete
            files again.
    """
    _check_names(repo_id, tag)
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
    known = {Path(name).parts[0] for name in sizes}
    if others := sorted(each.name for each in path.iterdir() if each.name not in known):
        print(f"Not part of a published folder, and not uploaded: {', '.join(map(flatten, others))}", flush=True)
    if dry_run:
        return "Nothing was uploaded, because of --dry-run."
    api = HfApi(token=token)
    with explain_hub_errors(f"{folder} could not be uploaded to {repo_id}", repo_id):
        repo_id = api.create_repo(repo_id, private=private or None, exist_ok=True).repo_id
        if private and not api.repo_info(repo_id).private:
            raise UserError(f"{repo_id} exists and is public: make it private on the Hub, or leave out --private.")
        upload = plan_upload(api, path, names, repo_id, groups=FILE_GROUPS)
        is_tagged = tag is not None and _check_tag(api, repo_id, tag, upload)
        if replaced := [name for name in upload.changed if name in upload.present]:
            print(f"Replaced in the repository: {', '.join(replaced)}", flush=True)
        if upload.stale:
            stale = ", ".join(map(flatten, upload.stale))
            print(f"Deleted in the repository, as files of an earlier version: {stale}", flush=True)
        commit = upload.parent
        if upload.is_needed:
            commit = commit_upload(api, path, upload, repo_id, commit_message=commit_message).oid
    if tag is not None and not is_tagged:
        with explain_hub_errors(f"{repo_id} is uploaded, but could not be tagged {tag}", repo_id):
            api.create_tag(repo_id, tag=tag, revision=commit)
    done = "Uploaded" if upload.is_needed else "Nothing was uploaded, the repository has these files already"
    return (
        f"{done}: {api.endpoint}/{repo_id}/commit/{commit}{'' if tag is None else f', tagged {tag}'}\n"
        f'Users pin this version with revision="{commit}" and code_revision="{commit}".'
    )
