"""Uploads a saved folder to the Hub in one commit, after which the repository has no file of an earlier version."""

import hashlib
import os
import re
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from transformers.utils import logging

from .card_hawaii import CARD, add_tags, code_section, remove_record, replace_section


logger = logging.get_logger(__name__)


# Arguments of `save_pretrained` that are for the push.
PUSH_OPTIONS = ("repo_id", "commit_message", "commit_description", "private", "token", "revision", "create_pr", "tags")
PUSH_OPTIONS += ("use_temp_dir",)
# Files at the top of a repository that belong together. Libraries would use those that an earlier version left: its
# weights if they are in more or fewer files, its tokenizer's additions, its adapter, its code. An image processor's
# settings are in either file of `processor`, and transformers 5 prefers the first.
FILE_GROUPS = {
    "weights": r".*\.safetensors(\.index\.json)?|pytorch_model.*|adapter_(config|model)\..*|generation_config\.json",
    "code": r".*_hawaii\.py",
    "processor": r"processor_config\.json|preprocessor_config\.json",
    "tokenizer": r"tokenizer.*|special_tokens_map\.json|added_tokens\.json|vocab\..*|merges\.txt|chat_template\..*",
}
MANIFEST = "manifest.json"  # of a published folder: it lists the hash of every file
# Files of a published folder that describe its weights.
RECORDS = ("training.json", "recipe.yaml", "loss_curves.png", ".eval_results/lmms_eval.yaml")


class IgnoredFileError(ValueError):
    """A file would be left out of an upload, because a `.gitignore` in the repository names it."""


def _groups_of(names: Iterable[str]) -> set[str]:
    return {group for name in names for group, pattern in FILE_GROUPS.items() if re.fullmatch(pattern, name)}


def find_stale(present: Iterable[str], names: Iterable[str], groups: Iterable[str] = ()) -> list[str]:
    """
    Names of the files of a repository that must go when other files replace them.

    Args:
        present (`Iterable[str]`):
            Paths of the files in the repository.
        names (`Iterable[str]`):
            Paths of the new files. Only files of the same groups are stale: a processor replaces no weights.
        groups (`Iterable[str]`, *optional*):
            Groups of [`FILE_GROUPS`] that the new files replace in any case: all, if they are a complete folder.
    """
    new = set(names)
    replaced = {*groups, *_groups_of(new)}
    return sorted(
        path
        for path in present
        if path not in new and "/" not in path and (path == MANIFEST or _groups_of([path]) & replaced)
    )


def _is_same(path: Path, remote) -> bool:
    """Whether a file of the repository has the content of a local file."""
    if remote.size != path.stat().st_size:
        return False
    if remote.lfs is None:
        return remote.blob_id == hashlib.sha1(b"blob %d\0" % remote.size + path.read_bytes()).hexdigest()
    hashed = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            hashed.update(chunk)
    return remote.lfs.sha256 == hashed.hexdigest()


@dataclass
class Upload:
    """
    The difference between a folder and a repository.

    Args:
        parent (`str`):
            Newest commit of the repository, to which the difference refers.
        changed (`list[str]`):
            Files to upload.
        stale (`list[str]`):
            Files to delete.
        present (`list[str]`):
            All files of the repository at this commit.
    """

    parent: str
    changed: list[str]
    stale: list[str]
    present: list[str]

    @property
    def is_needed(self) -> bool:
        return bool(self.changed or self.stale)

    @property
    def replaces_weights(self) -> bool:
        """Whether the repository has weights that others replace."""
        gone = [*self.stale, *(name for name in self.changed if name in self.present)]
        return any(name.endswith((".safetensors", ".bin")) for name in gone)


def plan_upload(
    api: HfApi,
    folder: Path,
    names: list[str],
    repo_id: str,
    revision: str | None = None,
    groups: Iterable[str] = (),
) -> Upload:
    """
    Compares files of a folder with a repository.

    Args:
        api (`HfApi`):
            Client of the Hub.
        folder (`Path`):
            A saved folder.
        names (`list[str]`):
            Paths of the files to upload, relative to `folder`.
        repo_id (`str`):
            An existing repository.
        revision (`str`, *optional*):
            A branch; the main one if not given.
        groups (`Iterable[str]`, *optional*):
            As for [`find_stale`].
    """
    parent = str(api.repo_info(repo_id, revision=revision).sha)
    entries = api.list_repo_tree(repo_id, recursive=True, revision=parent)
    remote = {entry.path: entry for entry in entries if hasattr(entry, "size")}  # folders have no size
    changed = [name for name in names if name not in remote or not _is_same(folder / name, remote[name])]
    stale = find_stale(remote, names, groups)
    if any(name.endswith(".safetensors") for name in [*changed, *stale]):
        # They describe the old weights, which are in the repository no more.
        stale += [path for path in RECORDS if path in remote and path not in names]
    # Only a change of another file makes a manifest wrong.
    return Upload(parent, changed, stale if changed or stale != [MANIFEST] else [], list(remote))


def commit_upload(api: HfApi, folder: Path, upload: Upload, repo_id: str, **options) -> CommitInfo:
    """
    Uploads the changed files and deletes the stale ones in one commit. Until then the repository is as before, and
    files that an interrupted upload has completed are not sent again.

    Args:
        api (`HfApi`):
            Client of the Hub.
        folder (`Path`):
            The folder of [`plan_upload`].
        upload (`Upload`):
            Its result.
        repo_id (`str`):
            The repository.
        options:
            As for `HfApi.create_commit`.

    Raises:
        IgnoredFileError: a `.gitignore` in the repository names one of the files.
        OSError: one of them cannot be read.
        HfHubHTTPError: the Hub refuses a request, for example with status 412 if there is a newer commit.
    """
    # Not `upload_folder`: huggingface_hub 2 may divide it into several commits.
    additions = []
    for name in upload.changed:
        path = folder / name
        path.stat()  # huggingface_hub's own error has no name of a file
        # Small files are read before the weights are sent: that may take hours, in which somebody may edit a file.
        additions.append(CommitOperationAdd(name, path if name.endswith(".safetensors") else path.read_bytes()))
    target = {"revision": options.get("revision"), "create_pr": options.get("create_pr")}
    api.preupload_lfs_files(repo_id, additions, free_memory=False, **target)
    # huggingface_hub would leave these out without a word. The field is private: a version without it checks nothing.
    if ignored := [each.path_in_repo for each in additions if getattr(each, "_should_ignore", False)]:
        raise IgnoredFileError(f"The .gitignore in {repo_id} names {ignored[0]}: remove this line or the .gitignore.")
    deletions = [CommitOperationDelete(path) for path in upload.stale]
    return api.create_commit(repo_id, [*deletions, *additions], parent_commit=upload.parent, **options)


def renew_card(api: HfApi, folder: Path, upload: Upload, repo_id: str, tags: list[str]) -> bool:
    """
    Writes the card of a repository into a folder, as it should be after an upload: with the hashes of the new code
    and, if weights are replaced, without scores and training. The rest stays.

    Args:
        api (`HfApi`):
            Client of the Hub.
        folder (`Path`), upload (`Upload`):
            The folder and the result of [`plan_upload`].
        repo_id (`str`):
            The repository. It has a card.
        tags (`list[str]`):
            Tags for its metadata.

    Returns:
        `bool`: Whether the card changes.
    """
    with tempfile.TemporaryDirectory() as cache:
        path = Path(api.hf_hub_download(repo_id, CARD, revision=upload.parent, cache_dir=cache))
        content = path.read_bytes()
    try:
        before = content.decode()  # with its line ends
    except UnicodeDecodeError:
        logger.warning(f"The card of {repo_id} is not in UTF-8 and stays as it is: correct what is no longer true.")
        return False
    card = remove_record(before) if upload.replaces_weights else before
    if card != before:
        logger.warning(f"The card of {repo_id} describes the old weights: its scores and training are removed.")
    card = replace_section(card, "code", code_section(folder))
    if tags:
        card = add_tags(card, tags)
    (folder / CARD).write_bytes(card.encode())
    return card != before


class PushedInOneCommit:
    """Uploads what `save_pretrained` saves, which includes the code."""

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        tags: str | list[str] | None = None,
        use_temp_dir: bool | None = None,
        **save_options,
    ) -> str:
        """
        Uploads the files and the code of this object in one commit, which also deletes files of an earlier version.

        Args:
            repo_id (`str`):
                `user/name`. The repository is created if it does not exist.
            commit_message, commit_description (`str`, *optional*):
                Text of the commit.
            private (`bool`, *optional*):
                Whether a new repository is private.
            token (`bool` or `str`, *optional*):
                Token of the Hub; the saved one if not given.
            revision (`str`, *optional*):
                Branch, which is created if it does not exist; the main one if not given.
            create_pr (`bool`, *optional*, defaults to `False`):
                Whether to open a pull request instead.
            tags (`str` or `list[str]`, *optional*):
                Tags for the model card.
            use_temp_dir (`bool`, *optional*):
                Accepted, as in transformers 4, without an effect: the folder is always a temporary one.
            save_options:
                As for `save_pretrained`, such as `max_shard_size`.

        Returns:
            `CommitInfo`: The new commit, or the newest one if the repository already has these files.
        """
        # A private function: if transformers removes it, the code still loads.
        from transformers.utils.hub import create_and_tag_model_card

        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/pr/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        tags = [*(getattr(self, "model_tags", None) or []), *([tags] if isinstance(tags, str) else tags or [])]
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            self.save_pretrained(folder, **save_options)  # pyright: ignore[reportAttributeAccessIssue]
            names = sorted(
                Path(parent, name).relative_to(folder).as_posix()
                for parent, _, files in os.walk(folder)
                for name in files
            )
            upload = plan_upload(api, folder, names, repo_id, revision)
            if CARD not in upload.present:
                create_and_tag_model_card(repo_id, tags or None, token=token).save(folder / CARD)
                upload.changed.append(CARD)
            elif renew_card(api, folder, upload, repo_id, tags):
                upload.changed.append(CARD)
            return commit_upload(
                api,
                folder,
                upload,
                repo_id,
                commit_message=commit_message or f"Upload {type(self).__name__}",
                commit_description=commit_description,
                revision=revision,
                create_pr=create_pr,
            )
