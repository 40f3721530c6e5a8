"""The rows of an ablation: the options of each row, and the recipe of one row with one seed."""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..files.user_error import UserError, explain_errors
from ..training.recipes.objectives import OBJECTIVES
from ..training.recipes.recipe import Recipe
from ..training.recipes.recipe_yaml import without_parents
from ..training.recipes.values import check_names
from ..training.teachers.config import TeacherConfig


@dataclass(frozen=True)
class Row:
    """
    A row.

    Args:
        label (`str`):
            Name in the table; the paper's if the paper has the row.
        options (`dict`):
            Options that replace those of the recipe; `vision_config.NAME` is one field, and `stages.NAME.OPTION` an
            option of one stage.
    """

    label: str
    options: dict


def names_of(options: Iterable[str]) -> set[str]:
    """The names of options without their stage, or the configuration that they belong to."""
    return {option.rpartition(".")[2] for option in options}


# Options that differ between the rows of HAWAII.
HAWAII = {"objective": "hawaii", "distillation": ["fine", "coarse"], "token_scoring": True}
FINE = {**HAWAII, "distillation": ["fine"], "vision_config.num_general_adapters": 0}
# As in the paper of MoVE-KD.
PUBLISHED = {"single_softmax": False, "detached_teacher_weights": False}
MOVE_KD = {
    "objective": "move_kd",
    "lambda_2": None,
    **PUBLISHED,
    **{f"vision_config.{name}": value for name, value in OBJECTIVES["move_kd"].vision_fields(0).items()},
}
ROWS = {
    # Table 2, in its order: each row adds one part.
    "llava": Row("LLaVA", {"objective": "llava"}),
    "fine": Row("+ FGKD (w/o token scoring)", {**FINE, "token_scoring": False}),
    "token_scoring": Row("+ token scoring", FINE),
    "hawaii": Row("+ CGKD (HAWAII)", HAWAII),
    # Other methods with several teachers.
    "move_kd": Row("MoVE-KD", MOVE_KD),
    "move_kd_repaired": Row("MoVE-KD, repaired", {**MOVE_KD, **dict.fromkeys(PUBLISHED, True)}),
    "radio": Row("RADIO", {"objective": "radio", "lambda_2": None}),
    # HAWAII without some of its parts.
    "coarse": Row("HAWAII, CGKD alone", {**HAWAII, "distillation": ["coarse"]}),
    "teacher_adapters": Row(
        "HAWAII, teacher-specific adapters only", {**HAWAII, "vision_config.num_general_adapters": 0}
    ),
    "general_adapters": Row(
        "HAWAII, general adapters only",
        {**HAWAII, "distillation": ["coarse"], "vision_config.num_teacher_adapters": 0},
    ),
}
DEFAULT_ROWS = ("llava", "fine", "token_scoring", "hawaii", "move_kd", "move_kd_repaired", "radio")
SINGLE_TEACHER_PREFIX = "only_"
ROW_NAME = re.compile(r"[\w-]+")  # also of its folder


def rows_of(teachers: list[TeacherConfig]) -> dict[str, Row]:
    """Returns all rows of a recipe with these teachers by name, in the order of the table."""
    single = {}
    for config in teachers:
        fields = {name: value for name, value in asdict(config).items() if value is not None}
        single[f"{SINGLE_TEACHER_PREFIX}{config.name}"] = Row(
            f"HAWAII, {config.name} alone", {**HAWAII, "teachers": [fields]}
        )
    return {**ROWS, **single}


def read_rows(path: str | Path, known: Mapping[str, Row], output_dir: Path) -> dict[str, Row]:
    """
    Reads further rows from a YAML file, a mapping of names to a `label`, a known `row` to start from and `options`
    that replace those of the row. `${output_dir}` is that of the recipe.

    Args:
        path (`str` or `Path`):
            The file.
        known (`Mapping[str, Row]`):
            Rows to start from.
        output_dir (`Path`):
            The recipe's.

    Raises:
        OSError: the file cannot be read.
        UserError: it is not such a mapping; names what is wrong.
    """
    path = Path(path)
    errors = (UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException, AssertionError, RecursionError)
    with explain_errors(f"{path} is not a file of rows", errors):
        # As recipes are read: YAML alone takes 1e-3 for text.
        given = OmegaConf.create(path.read_text(encoding="utf-8"))
        config = OmegaConf.create({"output_dir": str(output_dir), "rows": given})
        resolved: Any = OmegaConf.to_container(config, resolve=True)
    content = without_parents(resolved["rows"], f"{output_dir}/..")
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path} is not a file of rows: it must be a mapping of names to rows.")
    return {str(name): _read_row(f"{path}, row {name}", name, fields, known) for name, fields in content.items()}


def _read_row(location: str, name: Any, fields: Any, known: Mapping[str, Row]) -> Row:
    if not ROW_NAME.fullmatch(str(name)) or name in known:
        raise UserError(f"{location}: give it a name of letters, digits, _ and - that no other row has.")
    if not isinstance(fields, dict) or not isinstance(fields.get("options", {}), dict):
        raise UserError(f"{location}: it must be a mapping with a label, a row and options, itself a mapping.")
    check_names(location, "entry", fields, ("label", "row", "options"))
    if not all(isinstance(key, str) for key in fields.get("options", {})):
        raise UserError(f"{location}: the names of its options must be text.")
    start = fields.get("row", "hawaii")
    check_names(location, "row", [start], known)
    return Row(str(fields.get("label", name)), {**known[start].options, **fields.get("options", {})})


def make_recipe(recipe: Recipe, row: Row, seed: int, output_dir: Path) -> Recipe:
    """
    Makes and validates the recipe of one row with one seed.

    Args:
        recipe (`Recipe`):
            The recipe of the ablation. Its data and teachers stay in its `output_dir`.
        row (`Row`):
            Row whose options replace those of every stage.
        seed (`int`):
            Seed of all random numbers in training.
        output_dir (`Path`):
            Folder of the run.

    Raises:
        UserError: an option of the row does not fit this recipe.
    """
    changed = recipe.with_options({**row.options, "seed": seed}, output_dir)
    return dataclasses.replace(changed, eval_tasks=[])  # the tasks do not affect training
