"""The folders depend on each other in one direction only, and what is shipped to the Hub depends on nothing else."""

import ast
import configparser
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hawaii.configuration.hub_hawaii import CODE_FOLDERS, CODE_SUFFIX


ROOT = Path(__file__).parents[1]

# What each folder of the package may import beside itself.
ARROWS = {
    "configuration": set(),
    "processing": {"configuration"},
    "modeling_hawaii": {"configuration"},
    "hub_cards": {"configuration"},
    "metrics": set(),
    "training": {"configuration", "processing", "modeling_hawaii", "hub_cards", "metrics"},
    "evaluation": {"configuration", "processing", "modeling_hawaii", "hub_cards", "metrics", "training"},
}
HUB_LIBRARIES = {"torch", "transformers", "PIL"}
IMPORT_NAMES = {"pillow": "PIL", "pyyaml": "yaml"}


def declared_libraries(root: Path) -> tuple[set[str], set[str]]:
    """The libraries that setup.cfg always installs, and those of its extras, by the names they are imported under."""
    setup = configparser.ConfigParser()
    setup.read(root / "setup.cfg")
    always = import_names(setup["options"]["install_requires"])
    extras = set().union(*map(import_names, setup["options.extras_require"].values()))
    return always, extras


def import_names(requirements: str) -> set[str]:
    names = (re.match(r"[\w-]+", line) for line in requirements.split("\n"))
    return {IMPORT_NAMES.get(name[0], name[0].replace("-", "_")) for name in names if name}


def imports_of(tree: ast.Module) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Every import of a file, and whether importing the file runs it."""
    waiting: list[tuple[ast.AST, bool]] = [(tree, True)]
    while waiting:
        node, runs = waiting.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, runs
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            runs = False
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            runs = False
        waiting += [(child, runs) for child in ast.iter_child_nodes(node)]


def problems(root: Path) -> list[str]:
    """What is wrong with the imports of the package at `root`, one line for each."""
    found = []
    for path in [*root.glob("*.py"), *(path for folder in ARROWS for path in (root / folder).rglob("*.py"))]:
        file = path.relative_to(root)
        for node, runs in imports_of(ast.parse(path.read_text(encoding="utf-8"))):
            complain = problem_of_relative if isinstance(node, ast.ImportFrom) and node.level else problem_of_absolute
            found += [f"{file}:{node.lineno} {problem}" for problem in complain(node, file, runs, root)]
    return sorted(found)


def problem_of_relative(node: ast.ImportFrom, file: Path, runs: bool, root: Path) -> Iterator[str]:
    folders = file.parent.parts
    module = (node.module or "").split(".") if node.module else []
    target = [*folders[: len(folders) + 1 - node.level], *module]
    if node.level > len(folders) + 1:
        yield "leaves the package"
    elif not folders:
        if runs:
            yield f"imports {'.'.join(target)} as soon as the package is imported; do it where it is used"
    elif "tasks" in folders:
        yield "is relative, but lmms-eval reads this file by its path"
    elif not target and set(CODE_FOLDERS) <= ARROWS[folders[0]]:
        return  # the root's public names, which are those of the folders that this one may import
    elif not target or not module:
        yield "imports from a package; name the module"
    elif target[0] != folders[0] and target[0] not in ARROWS[folders[0]]:
        yield f"imports {'.'.join(target)}, which is not below {folders[0]}"
    elif is_shipped(file) and not (
        module[-1].endswith("_hawaii") and root.joinpath(*target).with_suffix(".py").is_file()
    ):
        yield f"imports {'.'.join(target)}, which is not shipped to the Hub"


def problem_of_absolute(node: ast.Import | ast.ImportFrom, file: Path, runs: bool, root: Path) -> Iterator[str]:
    always, extras = declared_libraries(root)
    modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
    if "tasks" in file.parts:  # lmms-eval reads it by its path, and it shares the metrics' rules
        modules = [module for module in modules if not module.startswith("hawaii.metrics.")]
    for library in {module.partition(".")[0] for module in modules} - sys.stdlib_module_names:
        is_plugin = file.parts[0] == "evaluation" and (file.name.startswith("lmms_") or "tasks" in file.parts)
        if library == "hawaii" or library in ARROWS:
            yield f"imports {library} absolutely; inside the package imports are relative"
        elif is_shipped(file) and library not in HUB_LIBRARIES:
            yield f"imports {library}, which users of a checkpoint may not have"
        elif library not in always | extras:
            yield f"imports {library}, which setup.cfg does not declare"
        elif runs and len(file.parts) == 1:
            yield f"imports {library} as soon as the package is imported; do it where it is used"
        elif runs and library not in always and not (is_plugin and library == "lmms_eval"):
            yield f"imports {library}, which is optional, at its top; do it where it is used"


def is_shipped(file: Path) -> bool:
    """Whether this file goes to the Hub beside the weights."""
    return file.parts[0] in CODE_FOLDERS and file.name.endswith(CODE_SUFFIX)


def test_every_folder_of_the_package_has_its_arrows():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    packages = [name.split(".") for name in setup["options"]["packages"].split()]
    assert {parts[1] for parts in packages if len(parts) > 1} == set(ARROWS)


def test_every_import_follows_the_arrows():
    found = problems(ROOT)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("file", "line", "problem"),
    [
        ("__init__.py", "import torch", "as soon as the package is imported"),
        ("__init__.py", "from .training.train import train", "as soon as the package is imported"),
        ("configuration/new.py", "from ..modeling_hawaii.vision_hawaii import x", "not below configuration"),
        ("modeling_hawaii/new.py", "def f():\n    from ..training.losses import x", "not below modeling_hawaii"),
        ("hub_cards/new.py", "from ..training.train import train", "not below hub_cards"),
        ("training/new.py", "from ..evaluation.chat import chat", "not below training"),
        ("modeling_hawaii/new.py", "from .. import HawaiiConfig", "name the module"),
        ("modeling_hawaii/new_hawaii.py", "from . import vision_hawaii", "name the module"),
        ("training/new.py", "from . import losses", "name the module"),
        ("training/new.py", "from ...other import x", "leaves the package"),
        ("training/new.py", "from hawaii.training.losses import x", "imports are relative"),
        ("training/new.py", "import configuration.configuration_hawaii", "imports are relative"),
        ("training/new.py", "import timm", "optional"),
        ("training/new.py", "def f():\n    import leftpad", "does not declare"),
        ("training/new.py", "import lmms_eval.api", "optional"),
        ("evaluation/tasks/new/utils.py", "from ...chat import chat", "by its path"),
        ("evaluation/tasks/new/utils.py", "from hawaii.training.losses import x", "imports are relative"),
        ("evaluation/new.py", "from hawaii.metrics.new.new import x", "imports are relative"),
        ("metrics/new/new.py", "from ...training.losses import x", "not below metrics"),
        ("modeling_hawaii/new_hawaii.py", "def f():\n    import numpy", "may not have"),
        ("modeling_hawaii/new_hawaii.py", "from ..configuration.defaults import x", "not shipped to the Hub"),
        ("modeling_hawaii/new_hawaii.py", "from ..configuration.absent_hawaii import x", "not shipped to the Hub"),
    ],
)
def test_a_planted_violation_is_seen(tmp_path, file, line, problem):
    plant(tmp_path, file, line)
    assert len(problems(tmp_path)) == 1
    assert problem in problems(tmp_path)[0]


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("__init__.py", "if TYPE_CHECKING:\n    from .configuration.configuration_hawaii import HawaiiConfig"),
        ("__main__.py", "def f():\n    from .training.train import train"),
        ("training/new.py", "import torch\nfrom ..hub_cards.card import x\nfrom .losses import y\nfrom .. import z"),
        ("training/new.py", "def f():\n    import timm"),
        ("evaluation/lmms_new.py", "from lmms_eval.api.model import lmms"),
        ("evaluation/tasks/new/utils.py", "from hawaii.metrics.new.new import x"),
        ("modeling_hawaii/new_hawaii.py", "from PIL import Image\nfrom ..configuration.old_hawaii import x"),
    ],
)
def test_what_is_allowed_is_not_complained_about(tmp_path, file, line):
    plant(tmp_path, "configuration/old_hawaii.py", "import torch")
    plant(tmp_path, file, line)
    assert problems(tmp_path) == []


def plant(root: Path, file: str, text: str) -> None:
    (root / "setup.cfg").write_text((ROOT / "setup.cfg").read_text(encoding="utf-8"), encoding="utf-8")
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(text + "\n", encoding="utf-8")
