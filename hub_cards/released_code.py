"""
The code of released versions, and folders whose code is of none of them.

`make release` adds the version of setup.cfg to the table.
"""

import configparser
import hashlib
from pathlib import Path

from ..configuration.hub_hawaii import CODE_SUFFIX, read_code
from ..files.atomic import read_json, write_json
from ..files.custom_code import find_code
from ..files.user_error import UserError


TABLE = Path(__file__).with_name("released_code.json")
SETUP = Path(__file__).parents[1] / "setup.cfg"


def hash_code(sources: dict[str, str]) -> dict[str, str]:
    """The SHA-256 of each file of [`read_code`], as in a saved folder."""
    return {name: hashlib.sha256(source.encode()).hexdigest() for name, source in sorted(sources.items())}


def read_released() -> dict[str, dict[str, str]]:
    """The SHA-256 of each code file by version and name."""
    return read_json(TABLE)


def find_other_code(folder: Path) -> list[str]:
    """
    Returns the names of a folder's code files that differ from the most similar version, which is the installed one or
    a released one, and the classes outside these files that its settings name. The list is empty if all code is of one
    version; a folder may lack files.

    Raises:
        UserError: a file of settings is damaged.
    """
    paths = folder.glob(f"*{CODE_SUFFIX}")
    present = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    versions = [hash_code(read_code()), *read_released().values()]
    differing = [[name for name in sorted(present) if version.get(name) != present[name]] for version in versions]
    references = [name for path in sorted(folder.glob("*config.json")) for name in find_code(read_json(path))]
    known = {name for version in versions for name in version}
    foreign = [name for name in references if f"{name.partition('.')[0]}.py" not in known]
    return [*min(differing, key=len), *dict.fromkeys(foreign)]


def record_release() -> str:
    """
    Adds the version of setup.cfg to the table.

    Raises:
        UserError: the version is in the table with other code, or is one of development.
    """
    setup = configparser.ConfigParser()
    setup.read(SETUP, encoding="utf-8")
    version, released, code = setup["metadata"]["version"], read_released(), hash_code(read_code())
    if "dev" in version:
        raise UserError(f"{version} in setup.cfg is a version of development: write the version to release.")
    if released.get(version, code) != code:
        raise UserError(f"The code of {version} has changed since its release: write a new version in setup.cfg.")
    write_json(TABLE, {**released, version: code})
    return f"{TABLE} has the code of {version}."


if __name__ == "__main__":
    print(record_release())
