"""What only its author can say about a published model: license, languages, data and origin."""

import re
from dataclasses import dataclass, fields
from typing import Any

from huggingface_hub.utils import HFValidationError, validate_repo_id

from ..files.user_error import UserError
from .licenses import License, check_license, check_link


# Not languages, but accepted by the Hub.
OTHER_LANGUAGES = ("code", "multilingual")


def is_repository(name: str) -> bool:
    """Whether a name can be that of a repository of the Hub, `owner/name`."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1


def check_repository(option: str, name: str) -> str:
    """Returns the name of a repository of the Hub; raises a `UserError` if it cannot be one."""
    if not isinstance(name, str) or not is_repository(name):
        raise UserError(f"{option} names {name!r}; it must be a repository of the Hub, as in owner/name.")
    return name


def read_norwegian(language: Any) -> Any:
    """A language or several of parsed YAML 1.1, which reads `no`, Norwegian, as `False`."""
    if isinstance(language, list):
        return [read_norwegian(code) for code in language]
    return "no" if language is False else language


def check_language(code: str) -> str:
    """
    Returns an ISO 639 code of two or three letters, or `multilingual` or `code`, which the Hub accepts as well.

    Raises:
        UserError: it is none of them.
    """
    import iso639  # here, because it reads its tables for a quarter of a second

    code = read_norwegian(code)
    if code in OTHER_LANGUAGES:
        return code
    try:
        if isinstance(code, str) and re.fullmatch("[a-z]{2,3}", code):
            iso639.Language.match(code)
            return code
    except iso639.LanguageNotFoundError:
        pass
    raise UserError(
        f"language names {code!r}; it must be an ISO 639 code of two or three letters, such as en, de or yue, or "
        f"{' or '.join(OTHER_LANGUAGES)}."
    )


def _as_list(value: Any) -> list:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


@dataclass(frozen=True)
class CardDataset:
    """
    Training data as a card shows it.

    Args:
        name (`str`, *optional*):
            Its name; that of the repository if not given.
        repository (`str`, *optional*):
            Repository on the Hub, for the card's metadata.
        license (`str`, *optional*):
            Its license, in any words.
        url (`str`, *optional*):
            Its page; that of the repository if not given.

    Raises:
        UserError: there is neither a name nor a repository, or one of the values is invalid.
    """

    name: str | None = None
    repository: str | None = None
    license: str | None = None
    url: str | None = None

    def __post_init__(self):
        if not self.name and self.repository is None:
            raise UserError("datasets has an item without name and repository; give it one of them.")
        for option in ("name", "license"):
            value = getattr(self, option)
            if value is not None and not isinstance(value, str):
                raise UserError(f"{option} of an item of datasets is {value!r}; it must be text.")
        if self.repository is not None:
            check_repository("datasets", self.repository)
        if self.url is not None:
            check_link("url of an item of datasets", self.url)

    @property
    def facts(self) -> dict[str, str | None]:
        """Its values for the facts of a card."""
        page = None if self.repository is None else f"https://huggingface.co/datasets/{self.repository}"
        return {
            "name": self.name or self.repository,
            "repository": self.repository,
            "license": self.license,
            "url": self.url or page,
        }


def _make_dataset(item: Any) -> CardDataset:
    if isinstance(item, str):
        return CardDataset(repository=item)
    known = [each.name for each in fields(CardDataset)]
    unknown = [name for name in item if name not in known] if isinstance(item, dict) else []
    if unknown or not isinstance(item, dict):
        problem = f"has no field {unknown[0]!r}" if unknown else f"is {item!r}"
        raise UserError(
            f"An item of datasets {problem}; it must be a repository of the Hub, or a mapping of {', '.join(known)}."
        )
    return CardDataset(**item)


@dataclass
class CardOptions:
    """
    Args:
        license (`str`, *optional*):
            License of the model: an identifier of the Hub.
        license_name (`str`, *optional*), license_link (`str`, *optional*):
            Name and address of a license that the Hub does not know; `license` is then `other`.
        language (`str` or `list[str]`, *optional*):
            ISO 639 codes of the languages that the model reads and writes.
        datasets (`str` or `list`, *optional*):
            Data that the model was trained on: repositories of the Hub, or mappings of the fields of [`CardDataset`].
        base_model (`str` or `list[str]`, *optional*):
            Repositories of the Hub that local folders of the recipe come from.

    Raises:
        UserError: a value is not one that the Hub accepts.
    """

    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    language: Any = None
    datasets: Any = None
    base_model: Any = None

    def __post_init__(self):
        self.language = [check_language(code) for code in _as_list(self.language)]
        self.datasets = [_make_dataset(item) for item in _as_list(self.datasets)]
        self.base_model = [check_repository("base_model", name) for name in _as_list(self.base_model)]
        given = {name: getattr(self, name) for name in ("license", "license_name", "license_link")}
        self.checked_license: License | None = check_license(given) if any(given.values()) else None
