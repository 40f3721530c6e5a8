"""Recipes: YAML to the arguments of each stage."""

import datetime
import difflib
import inspect
import os
import re
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Union, get_args, get_origin

import yaml
from transformers import CONFIG_MAPPING, AutoConfig, HfArgumentParser

from ...configuration.configuration_hawaii import HawaiiVisionConfig
from ...files.user_error import UserError
from .arguments import (
    DISTILLATIONS,
    LANGUAGE_PARTS,
    DataArguments,
    HawaiiTrainingArguments,
    ModelArguments,
    names_encoder_alone,
)


ARGUMENTS = (ModelArguments, DataArguments, HawaiiTrainingArguments)
TYPES = {field.name: field.type for arguments in ARGUMENTS for field in fields(arguments) if field.init}
KINDS = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    list: "a list",
    dict: "a mapping",
}
# What the first stage builds; a later one has no use for them.
PARTS = ("vision_tower", "vision_config", "language_model", "text_config", "llava")
# What decides which modules the first stage makes and a later one goes on with; and its defaults.
KEPT = {
    "objective": HawaiiTrainingArguments.objective,
    "distillation": list(DISTILLATIONS),
    "grid_matching": HawaiiTrainingArguments.grid_matching,
}
# What is said and asked, which needs a language model.
TEXT_OPTIONS = ("chat_template", "eval_data_path", "eval_tasks")
# In a mapping, what is no number even where it looks like one: a teacher may be called 2024.
TEXT_FIELDS = ("checkpoint", "name")
# transformers takes these in place of rope_parameters.
OLD_ROPE_FIELDS = ("rope_theta", "rope_scaling", "partial_rotary_factor")


def _as_number(value: str) -> int | float | None:
    try:
        number = float(value)
    except ValueError:
        return None
    return int(number) if number.is_integer() else number


def _with_numbers(value):
    """YAML 1.1 takes 1e-3, without a point, for a string."""
    if isinstance(value, dict):
        return {key: item if key in TEXT_FIELDS else _with_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_numbers(item) for item in value]
    number = _as_number(value) if isinstance(value, str) else None
    return value if number is None else number


def _typed(key: str, value):
    """
    A value as its option's type. YAML 1.1 takes 1e-3, without a point, for a string, a folder named 2024 for a number
    and the word no for false.

    Raises:
        ValueError: the option takes no such value.
    """
    types = get_args(TYPES[key]) if get_origin(TYPES[key]) in (Union, UnionType) else (TYPES[key],)
    kinds = [get_origin(kind) or kind for kind in types]
    if isinstance(value, str) and str not in kinds and (int in kinds or float in kinds):
        value = _with_numbers(value)
    if isinstance(value, float) and value.is_integer() and float not in kinds and int in kinds:
        value = int(value)
    if str in kinds and type(value) not in kinds:
        if isinstance(value, bool):
            value = "yes" if value else "no"
        elif isinstance(value, int | float | datetime.date):
            value = str(value)
    if isinstance(value, dict):
        value = _with_numbers(value)
    if isinstance(value, list):
        # The items themselves stay as they are: they are names.
        value = [_with_numbers(item) if isinstance(item, dict) else item for item in value]
    if type(value) in kinds or (type(value) is int and float in kinds):
        return value
    if value is None:
        raise UserError(f"{key} is empty; give it a value, or leave the key out.")
    allowed = " or ".join(KINDS.get(kind, str(kind)) for kind in kinds if kind is not NoneType)
    raise UserError(f"{key} is {value!r}; it must be {allowed}.")


def _fill_in(value, output_dir: str):
    if isinstance(value, dict):
        return {key: _fill_in(item, output_dir) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill_in(item, output_dir) for item in value]
    return value.replace("{output_dir}", output_dir) if isinstance(value, str) else value


def _is_mapping(key: str) -> bool:
    return dict in (get_args(TYPES.get(key)) or (TYPES.get(key),))


def _check_is_not_hidden(recipe: dict, key: str, override: str) -> None:
    """Raises an error where a stage has the mapping for itself, so that a shared one would do nothing there."""
    stages = recipe["stages"] if isinstance(recipe["stages"], dict) else {}
    for name, options in stages.items():
        if isinstance(options, dict) and key in options:
            raise UserError(
                f"The override {override!r} goes into {key!r}, which stage {name} has for itself: write "
                f"stages.{name}.{override}."
            )


def _apply(recipe: dict, override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals:
        raise UserError(f"{override!r} is no override; write key=value, or stages.NAME.key=value.")
    target = recipe
    *parents, last = key.split(".")
    if len(parents) == 1 and _is_mapping(parents[0]) and recipe.get(parents[0]) is None:
        _check_is_not_hidden(recipe, parents[0], override)
        recipe[parents[0]] = {}
    for parent in parents:
        if not isinstance(target.get(parent), dict):
            raise UserError(f"The override {override!r} goes into {parent!r}, which the recipe does not have.")
        target = target[parent]
    try:
        target[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(f"The value of the override {override!r} is not valid YAML: {error}") from error


def _check_names(place: str, kind: str, names: Iterable, known: Iterable[str]) -> None:
    known = list(known)
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise UserError(f"{place}: there is no {kind} {name!r}.{hint}")


def _check_vision_config(place: str, given: dict) -> None:
    if given.get("num_teacher_adapters", 0) != 0:
        raise UserError(
            f"{place}: num_teacher_adapters is the number of teachers; leave it out, or set it to 0 for none."
        )
    parameters = inspect.signature(HawaiiVisionConfig.__init__).parameters
    _check_names(place, "field", given, [name for name in parameters if name not in ("self", "kwargs")])


def _check_text_config(place: str, given: dict) -> None:
    model_type = given.get("model_type", "llama")
    _check_names(place, "model_type", [model_type], CONFIG_MAPPING)
    config = AutoConfig.for_model(model_type)
    known = ["model_type", *config.attribute_map, *(name for name in vars(config) if not name.startswith("_"))]
    _check_names(place, "field", given, known + [*(OLD_ROPE_FIELDS if hasattr(config, "rope_parameters") else ())])


CHECKS = {"vision_config": _check_vision_config, "text_config": _check_text_config}


def _check_stages(path: str, recipe) -> None:
    if not isinstance(recipe, dict) or not isinstance(recipe.get("stages"), dict) or not recipe["stages"]:
        raise UserError(f"{path} is no recipe: it needs `stages`, a mapping of names to options.")


def _read_yaml(path: str):
    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no recipe {path}.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}.") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from error


def _load(path: str, extended_by: tuple[str, ...] = ()) -> dict:
    """What a recipe says, over what the recipe says that it extends."""
    recipe = _read_yaml(path)
    if not isinstance(recipe, dict) or "extends" not in recipe:
        _check_stages(path, recipe)
        return {**recipe, "stages": {str(name): options or {} for name, options in recipe["stages"].items()}}
    if not isinstance(recipe["extends"], str):
        raise UserError(f"{path}: extends is {recipe['extends']!r}; it must be the file of another recipe.")
    extended = os.path.normpath(Path(path).parent / recipe.pop("extends"))
    if extended in (os.path.normpath(path), *extended_by):
        raise UserError(f"{path} extends {extended}, which is itself or extends it in turn.")
    beneath = _load(extended, (*extended_by, os.path.normpath(path)))
    stages = dict(beneath["stages"])
    if "stages" in recipe:
        _check_stages(path, recipe)
    for name, options in recipe.get("stages", {}).items():
        is_changed = isinstance(options, dict) and isinstance(stages.get(str(name)), dict)
        stages[str(name)] = {**stages[str(name)], **options} if is_changed else options or {}
    return {**beneath, **recipe, "stages": stages}


def _check_evaluation(place: str, options: dict) -> None:
    path = options.get("eval_data_path")
    # YAML 1.1 takes the word no for false.
    asking = [key for key in ("eval_strategy", "eval_on_start") if options.get(key) not in (None, "no", False)]
    if path is None and asking:
        raise UserError(
            f"{place}: {asking[0]} is {options[asking[0]]} but no eval_data_path names the questions; add it, or "
            "leave both out."
        )
    if path is not None and "eval_strategy" not in asking:
        raise UserError(
            f"{place}: nothing would be asked of eval_data_path {path}; say when with eval_strategy: steps and "
            "eval_steps, or leave it out."
        )


def _check_stage(place: str, name: str, options: dict, shared: dict, is_first: bool) -> None:
    if not isinstance(options, dict):
        raise UserError(f"{place}: its options are {options!r}; they must be a mapping.")
    if name == "hub" or not re.fullmatch(r"[\w-]+", name):
        raise UserError(
            f"{place}: a stage is a folder of the run beside `hub`; give it another name, of letters, digits, _ and -."
        )
    if "output_dir" in options:
        raise UserError(f"{place}: output_dir is the whole run's; each stage has a folder of its name in it.")
    _check_names(place, "option", [*shared, *options], TYPES)
    parts = [part for part in PARTS if part in options]
    if parts and not is_first:
        raise UserError(
            f"{place}: {parts[0]} would do nothing, because a later stage starts from the stage before it; move it to "
            "the shared keys or to the first stage."
        )
    for key, check in CHECKS.items():
        given = {**shared, **options}.get(key)
        if isinstance(given, dict):
            check(f"{place}, {key}", given)
    _check_evaluation(place, {**shared, **options})


def _check_kept(path: str, stages: dict[str, dict]) -> None:
    first = next(iter(stages))
    for name, options in stages.items():
        for key, default in KEPT.items():
            made, given = stages[first].get(key, default), options.get(key, default)
            if made != given:
                raise UserError(
                    f"{path}, stage {name}: its {key} is {given!r} and that of stage {first} is {made!r}, but a later "
                    "stage goes on with what the first one made; give both the same."
                )


def _check_encoder(path: str, stages: dict[str, dict]) -> None:
    """What holds for a student that is an encoder alone, or where it is more."""
    is_alone = names_encoder_alone(next(iter(stages.values())))
    for name, options in stages.items():
        if not is_alone and not options.get("data_path"):
            raise UserError(f"{path}, stage {name}: there is no data_path; name LLaVA's JSON.")
        named = [key for key in (*TEXT_OPTIONS, *LANGUAGE_PARTS) if options.get(key) is not None]
        if is_alone and named:
            raise UserError(
                f"{path}, stage {name}: {named[0]} is {options[named[0]]!r}, but the recipe's first stage names no "
                f"language model, so the encoder learns alone, from images; leave {named[0]} out, or name a "
                "language_model, a text_config or a llava."
            )
        if is_alone and _typed("lambda_1", options.get("lambda_1", 1)) == 0:
            raise UserError(
                f"{path}, stage {name}: lambda_1 is 0, but an encoder without a language model learns from teachers "
                "alone; give it a weight."
            )


def read_recipe(path: str, overrides: list[str] | None = None) -> dict[str, dict]:
    """
    Reads a recipe: keys that all stages share, and under `stages` each stage's own. `{output_dir}` in a value stands
    for the recipe's `output_dir`. With `extends: FILE`, relative to the recipe's own folder, it only says what differs
    from that recipe; a stage of the same name keeps its other options.

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
    recipe = _load(path)
    for override in overrides or []:
        _apply(recipe, override)
    _check_stages(path, recipe)  # an override may have replaced them
    shared = {key: value for key, value in recipe.items() if key != "stages"}
    if not shared.get("output_dir"):
        raise UserError(f"{path} names no output_dir.")
    shared["output_dir"] = str(shared["output_dir"])
    for number, (name, options) in enumerate(recipe["stages"].items()):
        _check_stage(f"{path}, stage {name}", name, options, shared, is_first=number == 0)
    stages = {name: {**shared, **options} for name, options in recipe["stages"].items()}
    _check_kept(path, stages)
    _check_encoder(path, stages)
    return {name: _fill_in(options, shared["output_dir"]) for name, options in stages.items()}


def parse_stage(options: dict, stage: str) -> tuple[ModelArguments, DataArguments, HawaiiTrainingArguments]:
    """The arguments of a stage, which writes into a folder of its own under the recipe's `output_dir`."""
    options = {key: _typed(key, value) for key, value in options.items()}
    options["output_dir"] = str(Path(options["output_dir"]) / stage)
    model, data, training = HfArgumentParser(ARGUMENTS).parse_dict(options)
    return model, data, training
