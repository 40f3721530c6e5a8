"""
The code of released versions, and folders whose code is of none of them.

`make release` adds the version of setup.cfg to the table.
"""

import configparser
import hashlib
from pathlib import Path

from ..configuration.card_hawaii import hash_folder
from ..configuration.hub_hawaii import read_code
from ..files.atomic import read_json, write_json
from ..files.custom_code import find_unknown_code
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
    Finds the code that users of a folder would run and that is not of the most similar version, which is the installed
    one or a released one. A folder may lack files.

    Returns:
        `list[str]`: Names of files that differ, and of classes elsewhere that a configuration names. Empty if all code
            is of one version.

    Raises:
        UserError: a configuration is damaged.
    """
    present = hash_folder(folder)
    versions = [hash_code(read_code()), *read_released().values()]
    differing = [[name for name in sorted(present) if version.get(name) != present[name]] for version in versions]
    references = [
        f"{reference} in {path.name}"
        for path in sorted(folder.glob("*config.json"))
        for reference in find_unknown_code(path, {*present, *versions[0]})
    ]
    return [*min(differing, key=len), *references]


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
