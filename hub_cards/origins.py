"""Where a model or data that a recipe names comes from, and its license, without a connection to the Hub."""

import re
from collections.abc import Mapping
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

    @property
    def repository(self) -> str | None:
        """The repository that it is; `None` for a local one, even if it is derived from a repository."""
        return self.name if self.name in self.repositories else None

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> "Origin":
        """The origin with these [`facts`]."""
        license = facts["license"]
        return cls(facts["name"], list(facts["repositories"]), None if license is None else License(**license))


def _read_metadata(card: Path) -> dict[str, Any]:
    """The metadata of a README.md; empty if there is none or it cannot be read."""
    try:
        return RepoCard(card.read_text(encoding="utf-8-sig"), ignore_metadata_errors=True).data.to_dict()
    except (OSError, ValueError, yaml.YAMLError):
        return {}


def _license_of(metadata: dict[str, Any]) -> License | None:
    """The only license that metadata names; `None` if there is none, several, or one that nothing describes."""
    given = metadata.get("license")
    if isinstance(given, list) and len(given) == 1:
        (given,) = given
    try:
        # Cards link the text of a known license, too.
        found = check_license({**metadata, "license": given} if given == "other" else {"license": given})
    except UserError:
        # Another card may link a file next to it, or give no name.
        name, link = metadata.get("license_name"), metadata.get("license_link")
        is_named = given == "other" and isinstance(name, str)
        is_address = isinstance(link, str) and link.startswith("https://")
        return License("other", flatten(name), link if is_address else None) if is_named else None
    return None if found.identifier == "unknown" else found


def _repositories_of(folder: Path, metadata: dict[str, Any]) -> list[str]:
    """The repositories that a folder names as its origin: its card's base models, or the name it was loaded from."""
    named = metadata.get("base_model")
    named = named if isinstance(named, list) else [named]
    if not any(named) and (folder / "config.json").is_file():
        try:
            named = [read_json(folder / "config.json").get("_name_or_path")]
        except UserError:
            named = []
    # A name that is a folder here is no repository.
    return [name for name in named if isinstance(name, str) and is_repository(name) and not Path(name).exists()]


def _cached_repository(path: Path, repo_type: str) -> str | None:
    """The repository of a snapshot in the cache of the Hub, whose folder is `models--OWNER--NAME`."""
    for part in path.resolve().parts:
        if match := re.fullmatch(rf"{repo_type}s--(.+?)--(.+)", part):
            return f"{match[1]}/{match[2]}"
    return None


def _read_card(folder: Path, repo_type: str) -> dict[str, Any]:
    """The metadata of the card of a folder, which is at the top of a snapshot in the cache of the Hub."""
    if repo_type == "dataset" and (folder / "config.json").is_file():
        return {}  # the card of a model, next to which the data are
    top = next((each for each in (folder, *folder.parents) if each.parent.name == "snapshots"), folder)
    return _read_metadata(top / "README.md")


def _last_part(name: str) -> str:
    """The last part of a path or of an address, without its query."""
    path = re.split("[?#]", name)[0] if "://" in name else name
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1] or "unknown"


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
    known = KNOWN if repo_type == "model" else {}
    if not path.exists():
        if not is_repository(source):
            return Origin(_last_part(source), [], None)
        cached = try_to_load_from_cache(source, "README.md", repo_type=repo_type)
        metadata = _read_metadata(Path(cached)) if isinstance(cached, str) else {}
        return Origin(source, [source], _license_of(metadata) or known.get(source))
    folder = path if path.is_dir() else path.parent
    metadata = _read_card(folder.absolute(), repo_type)
    if repository := _cached_repository(path, repo_type):
        return Origin(repository, [repository], _license_of(metadata) or known.get(repository))
    # A fine-tuned copy may have another license than its origin.
    repositories = _repositories_of(folder, metadata) if repo_type == "model" else []
    return Origin(path.resolve().name, repositories, _license_of(metadata))
