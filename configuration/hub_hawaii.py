"""The code in a saved folder: the Auto classes that load it, and the files that define their classes."""

import re
import sys
from pathlib import Path


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

# Arguments of `save_pretrained` that are for the push.
PUSH_OPTIONS = ("repo_id", "commit_message", "commit_description", "private", "token", "revision", "create_pr", "tags")
CODE_SUFFIX = "_hawaii.py"
CODE_FOLDERS = ("configuration", "processing", "modeling_hawaii")
RELATIVE_IMPORT = re.compile(r"^from \.+(?:\w+\.)*(\w+_hawaii) import", re.MULTILINE)


def _reachable(name: str, imports: dict[str, list[str]]) -> set[str]:
    """Modules that file `name` imports, directly or indirectly."""
    reached: set[str] = set()
    waiting = list(imports[name])
    while waiting:
        module = waiting.pop()
        if module not in reached:
            reached.add(module)
            waiting += imports.get(f"{module}.py", [])
    return reached - {name.removesuffix(".py")}


def read_code(here: Path = Path(__file__).parent) -> dict[str, str]:
    """
    Reads the source files that a saved folder needs, for one flat folder.

    The Hub loads code from one folder but the package has several, so `from ..folder.file_hawaii import Name` becomes
    `from .file_hawaii import Name`. transformers 4.57 copies only the files that an entry file imports directly; each
    file therefore ends with imports of those that it reaches indirectly.

    Code that was itself loaded from such a folder is already flat; transformers keeps the files of each class in a
    folder of their own.

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
    paths = [path for folder in folders for path in sorted(folder.glob(f"*{CODE_SUFFIX}"))]
    sources: dict[str, str] = {}
    for path in paths:
        if path.name in sources:
            raise ValueError(f"Two folders hold a file named {path.name}; a saved folder can hold one. Rename one.")
        sources[path.name] = RELATIVE_IMPORT.sub(r"from .\1 import", path.read_text(encoding="utf-8"))
    imports = {name: RELATIVE_IMPORT.findall(source) for name, source in sources.items()}
    for name in sources:
        for module in sorted(_reachable(name, imports) - set(imports[name])):
            sources[name] += f"from .{module} import __name__ as _{module}  # noqa: E402, F401\n"
    return sources


def save_code(save_directory, saved_class: type) -> None:
    """Writes the files of [`read_code`] that `saved_class` needs to the existing folder `save_directory`."""
    # The class itself may be a user's, from a notebook, or one that FSDP2 made.
    module = next(base.__module__ for base in saved_class.__mro__ if base.__module__.endswith("_hawaii"))
    for name, source in read_code(Path(str(sys.modules[module].__file__)).parent).items():
        (Path(save_directory) / name).write_text(source, encoding="utf-8")


class SavedWithCode:
    """
    Saves a configuration or a processor together with its code, so that the folder loads without this package.
    """

    hub_auto_map = {}  # Auto class: the class in the code that it loads

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs):
        """Like transformers' `save_pretrained`; also writes and pushes the code."""
        before = vars(self).get("auto_map")
        self.auto_map = dict(self.hub_auto_map)
        try:
            # The options of a push are for the push below, after the folder is complete.
            files = super().save_pretrained(save_directory, **({} if push_to_hub else kwargs))  # pyright: ignore[reportAttributeAccessIssue]
        finally:
            self.auto_map = before
            if before is None:
                del self.auto_map
        self._complete_folder(Path(save_directory))
        save_code(save_directory, type(self))
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", Path(save_directory).name), **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        return files

    def _complete_folder(self, folder: Path) -> None:
        """Writes additional files of a class."""


class ModelSavedWithCode:
    """Saves a model together with the code of its class, whichever Auto class loaded it."""

    def save_pretrained(self, save_directory, *args, push_to_hub: bool = False, **kwargs):
        """Like transformers' `save_pretrained`; also writes and pushes the code."""
        push = {name: kwargs.pop(name) for name in PUSH_OPTIONS if name in kwargs}
        super().save_pretrained(save_directory, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        if kwargs.get("is_main_process", True) and Path(save_directory).is_dir():
            save_code(save_directory, type(self))
        if push_to_hub:  # after the code; transformers would push only what it has written itself
            self.push_to_hub(push.pop("repo_id", Path(save_directory).name), **push)  # pyright: ignore[reportAttributeAccessIssue]
