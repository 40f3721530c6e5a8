"""Code that comes with a checkpoint: the classes that its configuration files ask transformers to run."""

from collections.abc import Container
from pathlib import Path
from typing import Any

from .atomic import read_json
from .user_error import UserError


def find_code(values: Any) -> list[str]:
    """Classes in every `auto_map` of a JSON file's content, as `module.Class` or `owner/name--module.Class`."""
    if isinstance(values, list):
        return [name for value in values for name in find_code(value)]
    if not isinstance(values, dict):
        return []
    found = []
    for key, value in values.items():
        if key == "auto_map":
            for classes in value.values() if isinstance(value, dict) else [value]:
                # A tokenizer lists two classes, and one may be null.
                found += [str(name) for name in (classes if isinstance(classes, list) else [classes]) if name]
        else:
            found += find_code(value)
    return list(dict.fromkeys(found))


def find_unknown_code(path: Path, known: Container[str]) -> list[str]:
    """
    Returns what a configuration file asks transformers to run that is in none of the known files: `custom_pipelines`,
    if it has this field, and classes as [`find_code`] does.
    """
    values = read_json(path)
    references = [name for name in find_code(values) if f"{name.partition('.')[0]}.py" not in known]
    return ["custom_pipelines", *references] if "custom_pipelines" in values else references


def refuse_code(subject: str, source: str | Path, references: list[str], hint: str) -> UserError:
    """
    Returns the error for a checkpoint whose code is not trusted. The message names the files of the code.

    Args:
        subject (`str`):
            The checkpoint, with its role.
        source (`str` or `Path`):
            Its folder, or repository of the Hub.
        references (`list[str]`):
            Classes from [`find_code`].
        hint (`str`):
            How the user can allow the code, for the message.
    """
    places = []
    for reference in references:
        repository, _, name = reference.rpartition("--")
        place = f"the repository {repository or source} of the Hub"
        if not repository and Path(source).is_dir():
            place = f"the folder {Path(source).resolve()}"
        places.append(f"{name.partition('.')[0]}.py in {place}")
    return UserError(
        f"{subject} needs code that neither transformers nor hawaii-vlm has: {' and '.join(dict.fromkeys(places))}. "
        f"It would run on this machine with all your rights: read it, and {hint} if you trust its authors."
    )
