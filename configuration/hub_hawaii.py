"""The code in a saved folder: the Auto classes that load it, and the files that define their classes."""

import ast
import hashlib
import re
import sys
from pathlib import Path

from .card_hawaii import CODE_SUFFIX
from .push_hawaii import PUSH_OPTIONS, PushedInOneCommit


AUTO_MAP = {
    "AutoConfig": "configuration_hawaii.HawaiiConfig",
    "AutoModel": "modeling_hawaii.HawaiiModel",
    "AutoModelForImageTextToText": "modeling_hawaii.HawaiiForConditionalGeneration",
    "AutoModelForMultimodalLM": "modeling_hawaii.HawaiiForConditionalGeneration",
    "AutoModelForVision2Seq": "modeling_hawaii.HawaiiForConditionalGeneration",
}
VISION_AUTO_MAP = {
    "AutoConfig": "configuration_hawaii.HawaiiVisionConfig",
    "AutoModel": "vision_hawaii.HawaiiVisionModel",
}
PROCESSOR_AUTO_MAP = {"AutoProcessor": "processing_hawaii.HawaiiProcessor"}

CODE_FOLDERS = ("configuration", "processing", "modeling_hawaii")
RELATIVE_IMPORT = re.compile(r"^from \.+(?:\w+\.)*(\w+_hawaii) import", re.MULTILINE)
# What each file of a saved folder has after its docstring. The hash is that of all files, so a change of one file
# changes every file: transformers 5 then sees two folders of the same name as different code.
HEADER = """
# transformers copies the files that it reads in import statements. These copy all of them, whichever is loaded first.
if False:
{imports}

# transformers 4 gives two local folders of the same name one module per file. Their code must not be mixed.
import sys as _sys  # noqa: E402

for _name, _module in list(_sys.modules.items()):
    if _name.rpartition(".")[0] == __package__ and _name.endswith("{suffix}"):
        if getattr(_module, "CODE_HASH", "{code_hash}" if _name == __name__ else None) != "{code_hash}":
            raise ImportError(
                f"{{_name}} is loaded already, with code of another version than {{__name__}}. If two local folders "
                "have the same name, rename one or load them in two processes. If it is one folder, save it again."
            )
CODE_HASH = "{code_hash}"
"""


def _add_headers(sources: dict[str, str]) -> dict[str, str]:
    """Inserts [`HEADER`] after the docstring of each file."""
    names = sorted(sources)
    code_hash = hashlib.sha256(
        "\0".join(text for name in names for text in (name, sources[name])).encode()
    ).hexdigest()
    headed = {}
    for name, source in sources.items():
        imports = "\n".join(f"    from .{other[:-3]} import __name__" for other in names if other != name)
        header = HEADER.format(imports=imports, suffix=CODE_SUFFIX[:-3], code_hash=code_hash[:16])
        lines = source.splitlines(keepends=True)
        docstring_end = ast.parse(source).body[0].end_lineno
        headed[name] = "".join([*lines[:docstring_end], header, *lines[docstring_end:]])
    return headed


def read_code(here: Path = Path(__file__).parent) -> dict[str, str]:
    """
    Reads the source files that a saved folder needs, for one flat folder.

    The Hub loads code from one folder but the package has several, so `from ..folder.file_hawaii import Name` becomes
    `from .file_hawaii import Name`. Each file gets a header, see [`HEADER`]. Code that was itself loaded from such a
    folder is flat and has the headers already.

    Args:
        here (`Path`, *optional*):
            Folder of a class of this code; this file's if not given.

    Returns:
        `dict[str, str]`: source text by file name.

    Raises:
        ValueError: two folders contain files of the same name.
    """
    is_package = here.name in CODE_FOLDERS and (here.parent / CODE_FOLDERS[0] / Path(__file__).name).is_file()
    folders = [here.parent / name for name in CODE_FOLDERS] if is_package else [here]
    sources: dict[str, str] = {}
    for path in [path for folder in folders for path in sorted(folder.glob(f"*{CODE_SUFFIX}"))]:
        if path.name in sources:
            raise ValueError(f"Two folders hold a file named {path.name}; a saved folder can hold one. Rename one.")
        sources[path.name] = RELATIVE_IMPORT.sub(r"from .\1 import", path.read_text(encoding="utf-8"))
    return _add_headers(sources) if is_package else sources


def save_code(save_directory, saved_class: type) -> None:
    """Writes the files of [`read_code`] that `saved_class` needs to the existing folder `save_directory`."""
    # The class itself may be a user's, from a notebook, or one that FSDP2 made.
    module = next(base.__module__ for base in saved_class.__mro__ if base.__module__.endswith("_hawaii"))
    for name, source in read_code(Path(str(sys.modules[module].__file__)).parent).items():
        (Path(save_directory) / name).write_text(source, encoding="utf-8")


class SavedWithCode(PushedInOneCommit):
    """
    Saves a configuration or a processor together with its code, so that the folder loads without this package.
    """

    hub_auto_map = {}  # Auto class: the class in the code that it loads

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs):
        """Like transformers' `save_pretrained`; also writes and pushes the code."""
        push = {name: kwargs.pop(name) for name in PUSH_OPTIONS if name in kwargs}
        before = vars(self).get("auto_map")
        self.auto_map = dict(self.hub_auto_map)
        try:
            files = super().save_pretrained(save_directory, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        finally:
            self.auto_map = before
            if before is None:
                del self.auto_map
        self._complete_folder(Path(save_directory))
        save_code(save_directory, type(self))
        if push_to_hub:
            self.push_to_hub(push.pop("repo_id", Path(save_directory).name), **push, **kwargs)
        return files

    def _complete_folder(self, folder: Path) -> None:
        """Writes additional files of a class."""


class ModelSavedWithCode(PushedInOneCommit):
    """Saves a model together with the code of its class, whichever Auto class loaded it."""

    def save_pretrained(
        self,
        save_directory,
        is_main_process: bool = True,
        state_dict: dict | None = None,
        *,
        push_to_hub: bool = False,
        **kwargs,
    ):
        """Like transformers' `save_pretrained`; also writes and pushes the code."""
        push = {name: kwargs.pop(name) for name in PUSH_OPTIONS if name in kwargs}
        save = super().save_pretrained  # pyright: ignore[reportAttributeAccessIssue]
        given = None if state_dict is None else dict(state_dict)  # transformers empties it
        save(save_directory, is_main_process=is_main_process, state_dict=given, **kwargs)
        if is_main_process and Path(save_directory).is_dir():
            save_code(save_directory, type(self))
        if is_main_process and push_to_hub:
            repo_id = push.pop("repo_id", Path(save_directory).name)
            self.push_to_hub(repo_id, state_dict=state_dict, **push, **kwargs)
