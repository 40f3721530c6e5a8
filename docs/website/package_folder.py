"""
A folder in which the package has its name.

The repository root is the package `hawaii`, whatever a clone's folder is called. The API pages are made from the
sources, which are read and not imported, so they need a folder that contains `hawaii`.
"""

import configparser
from pathlib import Path
from tempfile import TemporaryDirectory

from mkdocs.plugins import event_priority


ROOT = Path(__file__).parents[2]
_folder = None


@event_priority(100)  # before mkdocstrings reads its paths
def on_config(config):
    """Links to the folders of the package alone: a search of the whole repository would read environments and runs."""
    global _folder
    if _folder is None:
        _folder = TemporaryDirectory(prefix="hawaii-docs-")
        package = Path(_folder.name) / "hawaii"
        package.mkdir()
        setup = configparser.ConfigParser()
        setup.read(ROOT / "setup.cfg")
        names = {name.split(".")[1] for name in setup["options"]["packages"].split() if "." in name}
        for name in [*names, "__init__.py"]:
            (package / name).symlink_to(ROOT / name)
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [_folder.name]
    return config


def on_shutdown():
    """Removes the folder, not what its links lead to."""
    global _folder
    if _folder is not None:
        _folder.cleanup()
        _folder = None
