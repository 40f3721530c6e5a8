"""Recipes: YAML to the arguments of each stage."""

import difflib
from dataclasses import fields
from pathlib import Path

import yaml
from transformers import HfArgumentParser

from .arguments import DataArguments, HawaiiTrainingArguments, ModelArguments


ARGUMENTS = (ModelArguments, DataArguments, HawaiiTrainingArguments)
KNOWN = sorted(field.name for arguments in ARGUMENTS for field in fields(arguments) if field.init)


def read_recipe(path: str, overrides: list[str] | None = None) -> dict[str, dict]:
    """
    Reads a recipe: keys that all stages share, and under `stages` each stage's own. `{output_dir}` in a value stands for
    the recipe's `output_dir`.

    Args:
        path (`str`):
            The YAML file.
        overrides (`list[str]`, *optional*):
            `key=value` replaces a shared key, `stages.NAME.key=value` one of a stage; values are YAML.

    Returns:
        `dict[str, dict]`: the flat options of each stage, in order.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a recipe, or a key is unknown; the closest known one is named.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no recipe {path}.")
    try:
        recipe = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(recipe, dict) or not isinstance(recipe.get("stages"), dict) or not recipe["stages"]:
        raise ValueError(f"{path} is no recipe: it needs `stages`, a mapping of names to options.")
    for override in overrides or []:
        _apply(recipe, override)
    shared = {key: value for key, value in recipe.items() if key != "stages"}
    if "output_dir" not in shared:
        raise ValueError(f"{path} names no output_dir.")
    shared = _fill_in(shared, shared["output_dir"])
    stages = {name: {**shared, **_fill_in(options or {}, shared["output_dir"])} for name, options in recipe["stages"].items()}
    for name, options in stages.items():
        for key in options:
            if key not in KNOWN:
                close = difflib.get_close_matches(key, KNOWN, n=1)
                hint = f" Did you mean {close[0]}?" if close else ""
                raise ValueError(f"{path}, stage {name}: there is no option {key!r}.{hint}")
    return stages


def parse_stage(options: dict, stage: str) -> tuple[ModelArguments, DataArguments, HawaiiTrainingArguments]:
    """The arguments of a stage, which writes into a folder of its own under the recipe's `output_dir`."""
    options = {**options, "output_dir": str(Path(options["output_dir"]) / stage)}
    for key, value in options.items():
        # YAML 1.1 reads 1e-3, without a point, as a string.
        if isinstance(value, str) and _is_number(value):
            options[key] = float(value)
    model, data, training = HfArgumentParser(ARGUMENTS).parse_dict(options)
    return model, data, training


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def _fill_in(value, output_dir: str):
    if isinstance(value, dict):
        return {key: _fill_in(item, output_dir) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill_in(item, output_dir) for item in value]
    return value.replace("{output_dir}", output_dir) if isinstance(value, str) else value


def _apply(recipe: dict, override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals:
        raise ValueError(f"{override!r} is no override; write key=value, or stages.NAME.key=value.")
    target = recipe
    *parents, last = key.split(".")
    for parent in parents:
        if not isinstance(target.get(parent), dict):
            raise ValueError(f"The override {override!r} goes into {parent!r}, which the recipe does not have.")
        target = target[parent]
    target[last] = yaml.safe_load(value)
