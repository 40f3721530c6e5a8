"""The YAML of a recipe: other recipes that it extends, and overrides of the command line."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ...files.user_error import UserError
from .built_in import find_recipe


def check_stages(path: Path, recipe: Any) -> None:
    """Raises a `UserError` if the content of a file is not that of a recipe."""
    if not isinstance(recipe, dict) or not isinstance(recipe.get("stages"), dict) or not recipe["stages"]:
        raise UserError(f"{path} is not a recipe: it needs `stages`, a mapping of names to options.")


def read_yaml(path: Path, extended_by: tuple[Path, ...] = ()) -> dict:
    """The content of a recipe merged into the one it extends, before interpolation."""
    try:
        recipe: Any = OmegaConf.to_container(OmegaConf.create(path.read_text(encoding="utf-8")))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}.") from error
    except (yaml.YAMLError, OmegaConfBaseException, AssertionError, RecursionError) as error:
        # A file with only a number raises an AssertionError, deep nesting a RecursionError.
        raise UserError(f"{path} is not valid YAML: {error or 'it has no keys'}") from error
    if not isinstance(recipe, dict) or "extends" not in recipe or "stages" in recipe:
        check_stages(path, recipe)
        recipe["stages"] = {str(name): options or {} for name, options in recipe["stages"].items()}
    if "extends" not in recipe:
        return recipe
    if not isinstance(recipe["extends"], str):
        raise UserError(f"{path}: extends is {recipe['extends']!r}; it must be the file of another recipe.")
    extended = Path(os.path.normpath(find_recipe(recipe.pop("extends"), path.parent)))
    if extended in (path, *extended_by):
        raise UserError(f"{path} extends {extended}, which is the same file or extends it in turn.")
    merged: Any = OmegaConf.merge(read_yaml(extended, (*extended_by, path)), recipe)
    return OmegaConf.to_container(merged)


def without_parents(content: Any, start: str) -> Any:
    """
    Returns the content of a recipe in which paths that begin with `start`, a folder and `/..`, name the folder above
    directly: the folder may not exist yet, and no file is found through a missing folder.
    """
    if isinstance(content, dict):
        return {key: without_parents(value, start) for key, value in content.items()}
    if isinstance(content, list):
        return [without_parents(value, start) for value in content]
    return os.path.normpath(content) if isinstance(content, str) and content.startswith(f"{start}/") else content


def split_override(override: str) -> tuple[str, Any]:
    """Returns the key and the value, which is YAML, of `key=value`; raises a `UserError` if it is something else."""
    key, equals, text = override.partition("=")
    if not equals:
        raise UserError(f"{override!r} is not an override; write key=value, or stages.NAME.key=value.")
    try:
        (value,) = OmegaConf.to_container(OmegaConf.create(f"- {text}"))
    except (yaml.YAMLError, OmegaConfBaseException, RecursionError) as error:
        raise UserError(f"The value of the override {override!r} is not valid YAML: {error}") from error
    return key, value


def apply_override(recipe: Any, override: str) -> None:
    """Changes a key of a recipe, as `key=value` or `stages.NAME.key=value` say; raises a `UserError` if it cannot."""
    key, value = split_override(override)
    parent, *rest = key.split(".")
    if parent == "stages" and rest and rest[0] not in recipe.stages:
        raise UserError(f"The override {override!r} changes stage {rest[0]!r}, which the recipe does not have.")
    hiding = [name for name, options in recipe.stages.items() if rest and parent in (options or {})]
    if hiding:
        raise UserError(
            f"The override {override!r} changes {parent!r}, which stage {hiding[0]} replaces: write "
            f"stages.{hiding[0]}.{override}."
        )
    OmegaConf.update(recipe, key, value, merge=False)


def _escape(value: Any) -> Any:
    """Escapes `${`, and backslashes before it, which OmegaConf would read as an interpolation."""
    if isinstance(value, dict):
        return {key: _escape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escape(item) for item in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def format_recipe(output_dir: str, stages: Mapping[str, Mapping[str, Any]], run: Mapping[str, Any]) -> str:
    """
    The YAML of a recipe: options that all stages share first, then the stages'.

    Args:
        output_dir (`str`):
            Folder of the run.
        stages (`Mapping[str, Mapping[str, Any]]`):
            Every option of each stage.
        run (`Mapping[str, Any]`):
            Keys of the complete run; empty ones are left out.
    """
    first = next(iter(stages.values()))
    shared = {
        key: value
        for key, value in first.items()
        if all(key in options and options[key] == value for options in stages.values())
    }
    own = {
        name: {key: value for key, value in options.items() if key not in shared} for name, options in stages.items()
    }
    run = {key: value for key, value in run.items() if value}
    content = {"output_dir": output_dir, **run, **shared, "stages": own}
    return OmegaConf.to_yaml(OmegaConf.create(_escape(content)))
