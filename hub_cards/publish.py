"""Uploads a finished folder."""

from pathlib import Path

from huggingface_hub import HfApi


def publish(folder: str, repo_id: str, private: bool = False) -> str:
    """
    Uploads a published folder to the Hub, the repository being made if it is not there.

    Args:
        folder (`str`):
            What training left as `hub`.
        repo_id (`str`):
            `user/name`.
        private (`bool`, *optional*, defaults to `False`):
            Whether a new repository is private.

    Returns:
        `str`: the address of the commit.

    Raises:
        FileNotFoundError: the folder is no published HAWAII.
    """
    for name in ("config.json", "configuration_hawaii.py", "README.md"):
        if not (Path(folder) / name).is_file():
            raise FileNotFoundError(
                f"{folder} is no folder to publish: it has no {name}. Training leaves one named hub."
            )
    api = HfApi()
    api.create_repo(repo_id, private=private, exist_ok=True)
    return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload HAWAII"))
