"""The rows of an ablation: the options of each row, and the recipe of one row with one seed."""

import dataclasses
from dataclasses import asdict, dataclass
from pathlib import Path

from ..training.recipes.objectives import OBJECTIVES
from ..training.recipes.recipe import Recipe
from ..training.teachers.config import TeacherConfig


@dataclass(frozen=True)
class Row:
    """
    A row.

    Args:
        label (`str`):
            Name in the table; the paper's if the paper has the row.
        options (`dict`):
            Options that replace those of the recipe; `vision_config.NAME` is one field.
    """

    label: str
    options: dict


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


def rows_of(teachers: list[TeacherConfig]) -> dict[str, Row]:
    """Returns all rows of a recipe with these teachers by name, in the order of the table."""
    single = {}
    for config in teachers:
        fields = {name: value for name, value in asdict(config).items() if value is not None}
        single[f"{SINGLE_TEACHER_PREFIX}{config.name}"] = Row(
            f"HAWAII, {config.name} alone", {**HAWAII, "teachers": [fields]}
        )
    return {**ROWS, **single}


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
