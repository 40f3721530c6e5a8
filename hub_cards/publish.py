"""Uploads a published folder to the Hub."""

from pathlib import Path

from huggingface_hub import HfApi

from ..files.user_error import UserError, explain_errors


def publish(folder: str, repo_id: str, private: bool = False) -> str:
    """
    Uploads a published folder to the Hub and creates the repository if it does not exist.

    Args:
        folder (`str`):
            The folder `hub` of a training run.
        repo_id (`str`):
            `user/name`.
        private (`bool`, *optional*, defaults to `False`):
            Whether a new repository is private.

    Returns:
        `str`: URL of the commit.

    Raises:
        UserError: the folder lacks a file of a published HAWAII, or the upload fails.
    """
    for name in ("config.json", "configuration_hawaii.py", "README.md"):
        if not (Path(folder) / name).is_file():
            raise UserError(f"{folder} cannot be published: it has no {name}. Name the folder hub of a training run.")
    with explain_errors(f"{folder} could not be uploaded to {repo_id}"):
        api = HfApi()
        api.create_repo(repo_id, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload HAWAII"))
