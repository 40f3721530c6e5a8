"""The options of a stage: which keys exist, and their values as the types of the dataclasses."""

from dataclasses import fields
from typing import Any

from .arguments import DataArguments, HawaiiTrainingArguments, ModelArguments
from .objectives import OBJECTIVES
from .ranges import check_range
from .values import convert_option


STAGE_ARGUMENTS = (ModelArguments, DataArguments, HawaiiTrainingArguments)
TYPES = {field.name: field.type for arguments in STAGE_ARGUMENTS for field in fields(arguments) if field.init}
OBJECTIVE_TYPES = {
    name: {field.name: field.type for field in fields(objective.options_class)}
    for name, objective in OBJECTIVES.items()
}
# A recipe may contain the options of all objectives, including those that are not chosen.
OPTIONS = [*TYPES, *dict.fromkeys(name for types in OBJECTIVE_TYPES.values() for name in types)]


def convert_options(location: str, given: dict[str, Any]) -> dict[str, Any]:
    """
    Converts the options of a stage; those of other objectives than the chosen one are left out. An empty option of the
    objective has the objective's default.

    Raises:
        UserError: an option cannot have its value, because of the type or the size.
    """
    chosen = OBJECTIVE_TYPES.get(given.get("objective", HawaiiTrainingArguments.objective), {})
    given = {name: value for name, value in given.items() if name in TYPES or (name in chosen and value is not None)}
    types = {**TYPES, **chosen}
    options = {name: convert_option(location, name, value, types[name]) for name, value in given.items()}
    for name, value in options.items():
        check_range(location, name, value)
    return options
