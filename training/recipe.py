"""Recipes: YAML to the arguments of each stage."""

import difflib
from dataclasses import fields
from pathlib import Path
from typing import get_args

import yaml
from transformers import HfArgumentParser

from .arguments import DataArguments, HawaiiTrainingArguments, ModelArguments


ARGUMENTS = (ModelArguments, DataArguments, HawaiiTrainingArguments)
TYPES = {field.name: field.type for arguments in ARGUMENTS for field in fields(arguments) if field.init}


def _as_number(value: str) -> int | float | None:
    try:
        number = float(value)
    except ValueError:
        return None
    return int(number) if number.is_integer() else number


def _with_numbers(value):
    """YAML 1.1 takes 1e-3, without a point, for a string."""
    if isinstance(value, dict):
        return {key: _with_numbers(item) for key, item in value.items()}
    number = _as_number(value) if isinstance(value, str) else None
    return value if number is None else number


def _typed(key: str, value):
    """
    A value as its option's type. YAML 1.1 takes 1e-3, without a point, for a string, a folder named 2024 for a number
    and the word no for false.
    """
    types = get_args(TYPES[key]) or (TYPES[key],)
    if isinstance(value, dict):
        return _with_numbers(value)
    if isinstance(value, bool) and str in types and bool not in types:
        return "yes" if value else "no"
    if isinstance(value, int | float) and str in types and bool not in types:
        return str(value)
    if str in types:
        return value
    if isinstance(value, str) and (int in types or float in types):
        if _as_number(value) is None:
            raise ValueError(f"{key} is {value!r}, which is no number.")
        return _as_number(value)
    if isinstance(value, str) and bool in types:
        raise ValueError(f"{key} is {value!r}; it must be true or false.")
    if isinstance(value, str):
        raise ValueError(f"{key} is {value!r}; it must be a list or a mapping.")
    return value


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
    try:
        target[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ValueError(f"The value of the override {override!r} is not valid YAML: {error}") from error


def _check_stage(place: str, name: str, options: dict, shared: dict) -> None:
    if not isinstance(options, dict):
        raise ValueError(f"{place}: its options are {options!r}; they must be a mapping.")
    if name == "hub" or Path(name).name != name:
        raise ValueError(f"{place}: a stage is a folder of the run beside `hub`; give it another name.")
    if "output_dir" in options:
        raise ValueError(f"{place}: output_dir is the whole run's; each stage has a folder of its name in it.")
    for key in [*shared, *options]:
        if key not in TYPES:
            close = difflib.get_close_matches(str(key), TYPES, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise ValueError(f"{place}: there is no option {key!r}.{hint}")


def read_recipe(path: str, overrides: list[str] | None = None) -> dict[str, dict]:
    """
    Reads a recipe: keys that all stages share, and under `stages` each stage's own. `{output_dir}` in a value stands
    for the recipe's `output_dir`.

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
    recipe["stages"] = {str(name): options or {} for name, options in recipe["stages"].items()}
    for override in overrides or []:
        _apply(recipe, override)
    shared = {key: value for key, value in recipe.items() if key != "stages"}
    if not shared.get("output_dir"):
        raise ValueError(f"{path} names no output_dir.")
    shared["output_dir"] = str(shared["output_dir"])
    for name, options in recipe["stages"].items():
        _check_stage(f"{path}, stage {name}", name, options, shared)
    return {name: _fill_in({**shared, **options}, shared["output_dir"]) for name, options in recipe["stages"].items()}


def parse_stage(options: dict, stage: str) -> tuple[ModelArguments, DataArguments, HawaiiTrainingArguments]:
    """The arguments of a stage, which writes into a folder of its own under the recipe's `output_dir`."""
    options = {key: _typed(key, value) for key, value in options.items()}
    options["output_dir"] = str(Path(options["output_dir"]) / stage)
    model, data, training = HfArgumentParser(ARGUMENTS).parse_dict(options)
    return model, data, training
