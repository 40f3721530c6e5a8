"""The rows of an ablation: which settings each compares, and the recipe of one row with one seed."""

from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from ..files.atomic import write_text
from ..training.recipes.objectives import OBJECTIVES
from ..training.recipes.recipe import PARTS, parse_stage, read_recipe
from ..training.teachers.presets import expand_teachers


@dataclass(frozen=True)
class Row:
    """
    A row.

    Args:
        label (`str`):
            What the table calls it; in the paper's words where it has the row.
        options (`dict`):
            Options of a recipe that make the row, over what the recipe says; `vision_config.NAME` is one field.
    """

    label: str
    options: dict


# What the rows of HAWAII differ in.
HAWAII = {"objective": "hawaii", "distillation": ["fine", "coarse"], "token_scoring": True}
FINE = {**HAWAII, "distillation": ["fine"], "vision_config.num_general_adapters": 0}
# As its paper has it, whatever the recipe says of HAWAII's own adapters.
FAITHFUL = {"single_softmax": False, "detached_teacher_weights": False}
MOVE_KD = {
    "objective": "move_kd",
    "lambda_2": None,
    **FAITHFUL,
    **{f"vision_config.{name}": value for name, value in OBJECTIVES["move_kd"].vision_fields(0).items()},
}
ROWS = {
    # Table 2, in its order: each adds one thing.
    "llava": Row("LLaVA", {"objective": "llava"}),
    "fine": Row("+ FGKD (w/o token scoring)", {**FINE, "token_scoring": False}),
    "token_scoring": Row("+ token scoring", FINE),
    "hawaii": Row("+ CGKD (HAWAII)", HAWAII),
    # Other ways to learn from several teachers.
    "move_kd": Row("MoVE-KD", MOVE_KD),
    "move_kd_repaired": Row("MoVE-KD, repaired", {**MOVE_KD, **dict.fromkeys(FAITHFUL, True)}),
    "radio": Row("RADIO", {"objective": "radio", "lambda_2": None}),
    # HAWAII with less.
    "teacher_adapters": Row(
        "HAWAII, teacher-specific adapters only", {**HAWAII, "vision_config.num_general_adapters": 0}
    ),
    "general_adapters": Row(
        "HAWAII, general adapters only",
        {**HAWAII, "distillation": ["coarse"], "vision_config.num_teacher_adapters": 0},
    ),
}
DEFAULT_ROWS = ("llava", "fine", "token_scoring", "hawaii", "move_kd", "move_kd_repaired", "radio")
ALONE = "only_"  # and a teacher's name


def rows_of(teachers: str | list | None) -> dict[str, Row]:
    """All rows of a recipe with these teachers, by name, in the table's order."""
    alone = {}
    for config in expand_teachers(teachers):
        fields = {name: value for name, value in asdict(config).items() if value is not None}
        alone[f"{ALONE}{config.name}"] = Row(f"HAWAII, {config.name} alone", {**HAWAII, "teachers": [fields]})
    return {**ROWS, **alone}


def _with_options(stage: dict, options: dict) -> dict:
    changed = dict(stage)
    for key, value in options.items():
        option, dot, field = key.partition(".")
        changed[option] = {**(changed.get(option) or {}), field: value} if dot else value
    return changed


def make_recipe(stages: dict[str, dict], row: Row, seed: int, output_dir: Path) -> dict:
    """
    The recipe of one row with one seed.

    Args:
        stages (`dict[str, dict]`):
            What [`read_recipe`] gives: `{output_dir}` in it already stands for the folder that holds the data.
        row (`Row`):
            Its options hold in every stage.
        seed (`int`):
            Of all that is drawn in training.
        output_dir (`Path`):
            Where this run goes.

    Returns:
        `dict`: keys that all stages share first, then `stages`.
    """
    changed = {name: _with_options(stage, {**row.options, "seed": seed}) for name, stage in stages.items()}
    first = next(iter(changed.values()))
    for stage in changed.values():
        stage.pop("output_dir")
    # A later stage starts from the one before it, so that what it builds is the first one's to say.
    shared = {
        key: value
        for key, value in first.items()
        if key in PARTS or all(key in stage and stage[key] == value for stage in changed.values())
    }
    own = {name: {key: value for key, value in stage.items() if key not in shared} for name, stage in changed.items()}
    return {"output_dir": str(output_dir), **shared, "stages": own}


def write_recipe(path: Path, recipe: dict) -> None:
    """
    Writes a recipe that `hawaii train` reads, and reads it as that does.

    Raises:
        ValueError: an option has no such value; nothing is left.
    """
    write_text(path, yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))
    try:
        for name, options in read_recipe(str(path)).items():
            # Whatever accelerators this process sees: it uses none.
            parse_stage({**options, "use_cpu": True}, name)
    except ValueError:
        path.unlink()
        raise
