"""The folders depend on each other in one direction only, and what is shipped to the Hub depends on nothing else."""

import ast
import configparser
import re
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from hawaii.configuration.hub_hawaii import CODE_FOLDERS, CODE_SUFFIX


ROOT = Path(__file__).parents[1]


def read_arrows(document: str) -> dict[str, list[str]]:
    """The folders that each folder may import, from the table of docs/architecture.md; `NAME*` matches several."""
    rows = [
        line.strip("| ").split(" | ") for line in document.splitlines() if re.match(r"\| [a-z_/]+ \| .* \| ", line)
    ]
    folders = [row[0] for row in rows if row[0] != "folder"]
    arrows = {}
    for folder, _, allowed in rows:
        if folder in folders:
            patterns = [] if allowed == "-" else allowed.split(", ")
            found = [name for name in folders if any(fnmatchcase(name, pattern) for pattern in patterns)]
            assert all(any(fnmatchcase(name, pattern) for name in folders) for pattern in patterns), patterns
            arrows[folder] = found
    return arrows


ARROWS = read_arrows((ROOT / "docs/architecture.md").read_text(encoding="utf-8"))
TOP_FOLDERS = {folder.partition("/")[0] for folder in ARROWS}
LARGEST_FOLDER = 12
HUB_LIBRARIES = {"torch", "transformers", "PIL", "huggingface_hub"}  # transformers requires the last one
IMPORT_NAMES = {"pillow": "PIL", "python-iso639": "iso639", "pyyaml": "yaml"}
SPACE_LIBRARIES = HUB_LIBRARIES | {"gradio"}


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
    for path in [*root.glob("*.py"), *(path for folder in TOP_FOLDERS for path in (root / folder).rglob("*.py"))]:
        file = path.relative_to(root)
        for node, runs in imports_of(ast.parse(path.read_text(encoding="utf-8"))):
            complain = problem_of_relative if isinstance(node, ast.ImportFrom) and node.level else problem_of_absolute
            found += [f"{file}:{node.lineno} {problem}" for problem in complain(node, file, runs, root)]
    return sorted(found)


def problem_of_relative(node: ast.ImportFrom, file: Path, runs: bool, root: Path) -> Iterator[str]:
    folders = file.parent.parts
    module = (node.module or "").split(".") if node.module else []
    target = [*folders[: len(folders) + 1 - node.level], *module]
    allowed = {"files", str(file.parent), *ARROWS.get(str(file.parent), ())}
    if node.level > len(folders) + 1:
        yield "leaves the package"
    elif not folders:
        if runs and target[0] not in ("command_line", "files"):  # they import the standard library alone
            yield f"imports {'.'.join(target)} as soon as the package is imported; do it where it is used"
    elif "tasks" in folders:
        yield "is relative, but lmms-eval reads this file by its path"
    elif str(file.parent) not in ARROWS:
        yield "lies in a folder that has no arrows"
    elif not target and set(CODE_FOLDERS) <= allowed:
        return  # the root's public names, which are those of the folders that this one may import
    elif not target or not module:
        yield "imports from a package; name the module"
    elif folder_of(target) not in allowed:
        yield f"imports {'.'.join(target)}, which is not below {file.parent}"
    elif is_shipped(file) and not (
        module[-1].endswith("_hawaii") and root.joinpath(*target).with_suffix(".py").is_file()
    ):
        yield f"imports {'.'.join(target)}, which is not shipped to the Hub"


def folder_of(module: list[str]) -> str:
    """The folder of a module, which may itself be a folder with an `__init__.py`."""
    name = "/".join(module)
    return name if name in ARROWS else name.rpartition("/")[0]


def problems_in_text(root: Path) -> list[str]:
    """Modules named in text (worker strings, `!function` paths) that the file's folder may not import."""
    found = []
    for folder in TOP_FOLDERS:
        for path in (root / folder).rglob("*"):
            if path.suffix not in (".py", ".yaml") or not path.is_file():
                continue
            file = path.relative_to(root)
            home = file.parts[0] if "tasks" in file.parts else str(file.parent)
            allowed = {"files", home, *ARROWS.get(home, ())}
            for name in re.findall(r"\bhawaii\.((?:\w+\.)*\w+)", path.read_text(encoding="utf-8")):
                target = name.split(".")
                depth = next((n for n in range(len(target), 0, -1) if "/".join(target[:n]) in ARROWS), None)
                if depth is not None and "/".join(target[:depth]) not in allowed:
                    found.append(f"{file} names hawaii.{name}, which is not below {home}")
    return sorted(found)


def problem_of_absolute(node: ast.Import | ast.ImportFrom, file: Path, runs: bool, root: Path) -> Iterator[str]:
    always, extras = declared_libraries(root)
    modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
    if "tasks" in file.parts:  # lmms-eval reads it by its path, and it shares the metrics' rules
        modules = [module for module in modules if not module.startswith("hawaii.metrics.")]
    for library in {module.partition(".")[0] for module in modules} - sys.stdlib_module_names:
        is_plugin = file.parts[0] == "evaluation" and ("lmms" in file.parts or "tasks" in file.parts)
        if library == "hawaii" or library in TOP_FOLDERS:
            yield f"imports {library} absolutely; inside the package imports are relative"
        elif file.parts[:2] == (
            "hub_cards",
            "space",
        ):  # app.py is no module of the package: it runs beside this folder
            if library not in SPACE_LIBRARIES and (file.name, library) != ("app.py", "hawaii_space"):
                yield f"imports {library}, which a Space does not install"
        elif is_shipped(file) and library not in HUB_LIBRARIES:
            yield f"imports {library}, which users of a checkpoint may not have"
        elif library not in always | extras:
            yield f"imports {library}, which setup.cfg does not declare"
        elif runs and len(file.parts) == 1:
            yield f"imports {library} as soon as the package is imported; do it where it is used"
        elif runs and library not in always and not (is_plugin and library == "lmms_eval"):
            yield f"imports {library}, which is optional, at its top; do it where it is used"


def is_shipped(file: Path) -> bool:
    """Whether this file is published with the weights."""
    return file.parts[0] in CODE_FOLDERS and file.name.endswith(CODE_SUFFIX)


def test_every_folder_of_the_package_has_its_arrows():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    packages = {name.partition(".")[2].replace(".", "/") for name in setup["options"]["packages"].split()}
    assert packages - {""} == set(ARROWS)


def test_every_import_follows_the_arrows():
    found = [*problems(ROOT), *problems_in_text(ROOT)]
    assert not found, "\n".join(found)


def test_the_arrows_have_no_cycle():
    seen = set()
    for folder, below in ARROWS.items():
        assert seen.issuperset(below), folder
        seen.add(folder)


@pytest.mark.parametrize("folder", ARROWS)
def test_no_folder_is_large(folder):
    modules = [path.name for path in (ROOT / folder).glob("*.py") if path.name != "__init__.py"]
    assert len(modules) <= LARGEST_FOLDER, modules


@pytest.mark.parametrize("folder", ARROWS)
def test_an_upward_import_planted_in_a_folder_is_reported(tmp_path, folder):
    """Imports of a folder at the same level and module names in text count too."""
    others = [other for other in ARROWS if other not in (folder, "files", *ARROWS[folder])]
    up = "." * (folder.count("/") + 2)
    for other in others or ["outside"]:
        plant(tmp_path, f"{folder}/new.py", f"def f():\n    from {up}{other.replace('/', '.')}.module import x")
        (problem,) = problems(tmp_path)
        assert problem.startswith(f"{folder}/new.py:2 imports {other.replace('/', '.')}.module, which is not below")
        plant(tmp_path, f"{folder}/new.py", f'WORKER = "hawaii.{other.replace("/", ".")}.module"')
        if others:
            assert problems_in_text(tmp_path) == [
                f"{folder}/new.py names hawaii.{other.replace('/', '.')}.module, which is not below {folder}"
            ]


@pytest.mark.parametrize(
    ("file", "line", "problem"),
    [
        ("__init__.py", "import torch", "as soon as the package is imported"),
        ("__init__.py", "from .training.train import train", "as soon as the package is imported"),
        ("configuration/new.py", "from ..modeling_hawaii.vision_hawaii import x", "not below configuration"),
        (
            "modeling_hawaii/new.py",
            "def f():\n    from ..training.objectives.hawaii_losses import x",
            "not below modeling_hawaii",
        ),
        ("hub_cards/new.py", "from ..training.train import train", "not below hub_cards"),
        ("training/new.py", "from ..evaluation.chat import chat", "not below training"),
        ("modeling_hawaii/new.py", "from .. import HawaiiConfig", "name the module"),
        ("modeling_hawaii/new_hawaii.py", "from . import vision_hawaii", "name the module"),
        ("training/new.py", "from . import trainer", "name the module"),
        ("training/new.py", "from ...other import x", "leaves the package"),
        ("training/new.py", "from hawaii.training.objectives.hawaii_losses import x", "imports are relative"),
        ("training/new.py", "import configuration.configuration_hawaii", "imports are relative"),
        ("training/new.py", "import timm", "optional"),
        ("training/new.py", "def f():\n    import leftpad", "does not declare"),
        ("training/new.py", "import lmms_eval.api", "optional"),
        ("evaluation/tasks/new/utils.py", "from ...chat import chat", "by its path"),
        (
            "evaluation/tasks/new/utils.py",
            "from hawaii.training.objectives.hawaii_losses import x",
            "imports are relative",
        ),
        ("evaluation/new.py", "from hawaii.metrics.new.new import x", "imports are relative"),
        ("metrics/answer_accuracy/new.py", "from ...training.trainer import x", "not below metrics"),
        ("modeling_hawaii/new_hawaii.py", "def f():\n    import numpy", "may not have"),
        ("hub_cards/space/hawaii_space/new.py", "import accelerate", "a Space does not install"),
        ("hub_cards/space/hawaii_space/new.py", "from ...card import x", "not below hub_cards/space/hawaii_space"),
        ("modeling_hawaii/new_hawaii.py", "from ..configuration.reader import x", "not shipped to the Hub"),
        ("modeling_hawaii/new_hawaii.py", "from ..configuration.absent_hawaii import x", "not shipped to the Hub"),
    ],
)
def test_a_planted_violation_is_reported(tmp_path, file, line, problem):
    plant(tmp_path, file, line)
    assert len(problems(tmp_path)) == 1
    assert problem in problems(tmp_path)[0]


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("__init__.py", "if TYPE_CHECKING:\n    from .configuration.configuration_hawaii import HawaiiConfig"),
        ("__main__.py", "def f():\n    from .training.train import train"),
        ("training/new.py", "import torch\nfrom ..hub_cards.card import x\nfrom .trainer import y\nfrom .. import z"),
        ("training/new.py", "def f():\n    import timm"),
        ("evaluation/lmms/new.py", "from lmms_eval.api.model import lmms"),
        ("hub_cards/space/app.py", "from hawaii_space.new import x"),
        ("hub_cards/space/hawaii_space/new.py", "import gradio\nfrom .answerer import x"),
        ("evaluation/tasks/new/utils.py", "from hawaii.metrics.new.new import x"),
        ("modeling_hawaii/new_hawaii.py", "from PIL import Image\nfrom ..configuration.old_hawaii import x"),
    ],
)
def test_allowed_imports_are_not_reported(tmp_path, file, line):
    plant(tmp_path, "configuration/old_hawaii.py", "import torch")
    plant(tmp_path, file, line)
    assert problems(tmp_path) == []


def plant(root: Path, file: str, text: str) -> None:
    (root / "setup.cfg").write_text((ROOT / "setup.cfg").read_text(encoding="utf-8"), encoding="utf-8")
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(text + "\n", encoding="utf-8")
