"""Where a model or data that a recipe names comes from, and its license, without a connection to the Hub."""

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import RepoCard, try_to_load_from_cache

from ..files.atomic import read_json
from ..files.escape import flatten
from ..files.user_error import UserError
from .card_options import is_repository
from .licenses import KNOWN, License, check_license


@dataclass(frozen=True)
class Origin:
    """
    Args:
        name (`str`):
            Name to show: a repository of the Hub, or the last part of a local path.
        repositories (`list[str]`):
            Repositories of the Hub that it is, or is derived from; none if that is not known.
        license (`License`, *optional*):
            Its license, if known.
    """

    name: str
    repositories: list[str]
    license: License | None

    @property
    def facts(self) -> dict[str, Any]:
        """Its values for the facts of a card."""
        return asdict(self)


def _read_metadata(card: Path) -> dict[str, Any]:
    """The metadata of a README.md; empty if there is none or it cannot be read."""
    try:
        return RepoCard(card.read_text(encoding="utf-8"), ignore_metadata_errors=True).data.to_dict()
    except (OSError, ValueError, yaml.YAMLError):
        return {}


def _license_of(metadata: dict[str, Any]) -> License | None:
    """The only license that metadata names; `None` if there is none, several, or one that nothing describes."""
    given = metadata.get("license")
    if isinstance(given, list) and len(given) == 1:
        (given,) = given
    try:
        found = check_license({**metadata, "license": given})
    except UserError:
        # Another card may link a file next to it, or give no name.
        name, link = metadata.get("license_name"), metadata.get("license_link")
        is_named = given == "other" and isinstance(name, str)
        is_address = isinstance(link, str) and link.startswith("https://")
        return License("other", flatten(name), link if is_address else None) if is_named else None
    return None if found.identifier == "unknown" else found


def _repositories_of(folder: Path, metadata: dict[str, Any]) -> list[str]:
    """What a folder says about its origin: the model card's base models, or the name it was loaded from."""
    named = metadata.get("base_model")
    named = named if isinstance(named, list) else [named]
    if not any(named) and (folder / "config.json").is_file():
        try:
            named = [read_json(folder / "config.json").get("_name_or_path")]
        except UserError:
            named = []
    # A name that is a folder here is no repository.
    return [name for name in named if isinstance(name, str) and is_repository(name) and not Path(name).exists()]


def _cached_repository(path: Path) -> str | None:
    """The repository of a snapshot in the cache of the Hub, whose folder is `models--OWNER--NAME`."""
    for part in path.resolve().parts:
        if match := re.fullmatch(r"(?:models|datasets)--(.+?)--(.+)", part):
            return f"{match[1]}/{match[2]}"
    return None


def find_origin(source: str, repo_type: str = "model") -> Origin:
    """
    Finds out where a model or a data set comes from. Nothing is downloaded: a repository's license is known if it is
    one of [`KNOWN`] or its card is in the cache.

    Args:
        source (`str`):
            Folder, file or repository of the Hub.
        repo_type (`str`, *optional*, defaults to `"model"`):
            `model` or `dataset`.
    """
    path = Path(source)
    if not path.exists():
        cached = try_to_load_from_cache(source, "README.md", repo_type=repo_type) if is_repository(source) else None
        metadata = _read_metadata(Path(cached)) if isinstance(cached, str) else {}
        license = _license_of(metadata) or KNOWN.get(source)
        return Origin(source, [source] if is_repository(source) else [], license)
    folder = path if path.is_dir() else path.parent
    metadata = _read_metadata(folder / "README.md")
    if repository := _cached_repository(path):
        return Origin(repository, [repository], _license_of(metadata) or KNOWN.get(repository))
    # A fine-tuned copy may have another license than its origin.
    return Origin(path.resolve().name, _repositories_of(folder, metadata), _license_of(metadata))
