"""The recipe of a published folder: every option with an effect, without what must not leave the machine."""

import getpass
import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from urllib.parse import urlsplit

from ...files.atomic import write_text
from ...files.escape import flatten
from ...hub_cards.card_options import is_repository
from ...hub_cards.published_files import TOKEN
from ..recipes.options import WITHOUT_EFFECT
from ..recipes.recipe import Recipe, format_recipe


# Options without an effect on the numbers that a reader needs to run the recipe.
KEPT = {
    "data_path",
    "image_folder",
    "data",
    "eval_data_path",
    "teacher_cache",
    "eval_strategy",
    "eval_steps",
    "logging_steps",
    "save_steps",
    "gradient_checkpointing",
    "activation_checkpointing",
    "strategy",
    "num_processes",
    "dataloader_num_workers",
}
# Names of secrets, but not of numbers such as max_batch_tokens.
SECRET_NAME = re.compile(r"(^|_)(token|secret|password|passwd|api_?key|credentials?)$", re.IGNORECASE)


def _is_public(name: str) -> bool:
    return (name not in WITHOUT_EFFECT or name in KEPT) and not SECRET_NAME.search(name)


def _users() -> set[str]:
    """Names of the user, which folders often have."""
    try:
        return {getpass.getuser(), Path.home().name}
    except (OSError, KeyError, RuntimeError):
        return set()


def _last_part(path: str) -> str:
    """A path of this machine as one of its last part."""
    parts = PureWindowsPath(path).parts if "\\" in path or re.match(r"[A-Za-z]:", path) else PurePosixPath(path).parts
    last = parts[-1] if len(parts) > 1 else "private"
    return f"./{'private' if last in _users() or last == '..' else last}"


def _hide_path(text: str, output_dir: str, public_dir: str) -> str:
    """A value of an option: a local path without its folders, an address without its login and query."""
    if text == output_dir or text.startswith(f"{output_dir}/"):
        return public_dir + text.removeprefix(output_dir)
    if "\n" in text:  # a chat template
        return text.replace(str(Path.home()), "~")
    if "://" in text:
        address = urlsplit(text)
        if address.scheme == "file":
            return _last_part(address.path)
        return f"{address.scheme}://{address.netloc.rpartition('@')[2]}{address.path}"
    if is_repository(text) and not os.path.exists(text):
        return text
    # A pattern may have a backslash, so it is no sign of a path within a text.
    is_path = "/" in text or text.startswith(("~", "\\")) or text == ".." or re.match(r"[A-Za-z]:\\", text)
    return _last_part(text) if is_path else text


def _make_public(value: Any, output_dir: str, public_dir: str) -> Any:
    if isinstance(value, Mapping):
        return {
            key: _make_public(item, output_dir, public_dir)
            for key, item in value.items()
            if not SECRET_NAME.search(str(key))
        }
    if isinstance(value, list | tuple):
        return [_make_public(item, output_dir, public_dir) for item in value]
    if not isinstance(value, str):
        return value
    return TOKEN.sub("hidden", _hide_path(value, output_dir, public_dir))


def write_public_recipe(plan: Recipe, path: Path) -> None:
    """
    Writes a recipe for readers of a published folder. Options of reporting, uploading and the machine are left out;
    local paths keep their last part, or the part below `output_dir`, which becomes `runs/NAME`.

    Args:
        plan (`Recipe`):
            The recipe.
        path (`Path`):
            File to write.
    """
    public_dir = f"runs/{flatten(plan.output_dir.resolve().name)}"
    stages = {
        name: _make_public(
            {key: value for key, value in stage.given.items() if _is_public(key)}, str(plan.output_dir), public_dir
        )
        for name, stage in plan.stages.items()
    }
    write_text(path, format_recipe(public_dir, stages, {"eval_tasks": plan.eval_tasks, "card": plan.card}))
