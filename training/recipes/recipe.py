"""A recipe: YAML to the typed options of each stage."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from transformers import IntervalStrategy

from ...files.atomic import write_text
from ...files.run_contents import HUB_FOLDER
from ...files.user_error import UserError, explain_errors
from ...hub_cards.card_options import CardOptions
from ..objectives.objective import ObjectiveOptions
from ..teachers.config import TeacherConfig
from ..teachers.presets import expand_teachers
from .arguments import LANGUAGE_OPTIONS, DataArguments, HawaiiTrainingArguments, ModelArguments
from .built_in import find_recipe
from .interpolation import check_interpolations
from .lora import check_frozen_base, convert_lora
from .model_configs import check_text_config, check_vision_config
from .objectives import OBJECTIVES
from .options import OPTIONS, convert_options
from .recipe_yaml import apply_override, check_stages, format_recipe, read_yaml, without_parents
from .values import check_names, convert_option


# Options that the first stage builds the student from; a later stage continues with the result.
STUDENT_OPTIONS = ("vision_tower", "vision_config", "language_model", "text_config", "llava")
# Options that need a language model.
TEXT_OPTIONS = (
    "chat_template",
    "distill_tiles",
    "eval_data_path",
    "image_grid_pinpoints",
    "max_batch_tiles",
    "max_batch_tokens",
    "neftune_noise_alpha",
    "lora",
    "quantization",
    "packing",
)
CONFIG_CHECKS: dict[str, Callable[[str, dict], None]] = {
    "vision_config": check_vision_config,
    "text_config": check_text_config,
}
NOT_GIVEN = object()
STAGE_PREFIX = "stages."  # of an option of one stage


@dataclass(frozen=True)
class Stage:
    """
    Args:
        name (`str`):
            Name of the stage and of its folder.
        model (`ModelArguments`), data (`DataArguments`), training (`HawaiiTrainingArguments`):
            Its arguments. `training.output_dir` is the folder of the stage.
        options (`ObjectiveOptions`):
            Options of the chosen objective, `training.objective`.
        teachers (`list[TeacherConfig]`):
            The teachers that the recipe names, even if the objective uses none.
        given (`dict`):
            Options as written in the recipe. Two stages are equal if these are.
    """

    name: str
    model: ModelArguments = field(compare=False)
    data: DataArguments = field(compare=False)
    training: HawaiiTrainingArguments = field(compare=False)
    options: ObjectiveOptions = field(compare=False)
    teachers: list[TeacherConfig] = field(compare=False)
    given: Mapping[str, Any] = field(repr=False)

    @property
    def distilled_teachers(self) -> list[TeacherConfig]:
        """The teachers that the objective uses; none for LLaVA."""
        return self.teachers if OBJECTIVES[self.training.objective].uses_teachers else []


@dataclass(frozen=True)
class Recipe:
    """
    Args:
        path (`Path`):
            The YAML file.
        name (`str`):
            Its name without suffix.
        output_dir (`Path`):
            Folder of the run.
        stages (`dict[str, Stage]`):
            The stages, in order.
        eval_tasks (`list[str]`):
            Tasks to evaluate the finished model on; `hawaii ablate` uses them.
        use_cpu (`bool`):
            Whether training arguments ignore the accelerators of this process.
        card (`dict`):
            Fields of [`CardOptions`], for the model card.
    """

    path: Path = field(compare=False)
    name: str = field(compare=False)
    output_dir: Path
    stages: dict[str, Stage]
    eval_tasks: list[str]
    use_cpu: bool = field(default=False, compare=False)
    card: dict[str, Any] = field(default_factory=dict)

    @property
    def is_encoder_alone(self) -> bool:
        """Whether the student is an encoder without a language model."""
        return next(iter(self.stages.values())).model.is_encoder_alone

    def build_stage(self, name: str) -> Stage:
        """
        Builds a stage again from the recipe's options. Training arguments set the process's DeepSpeed configuration
        when they are built, so a stage is built again directly before it runs.
        """
        return _build_stage(self.path, name, self.stages[name].given, self.output_dir, self.use_cpu)

    def with_options(self, options: Mapping[str, Any], output_dir: str | Path | None = None) -> "Recipe":
        """
        Returns the same recipe with these options, validated.

        Args:
            options (`Mapping[str, Any]`):
                Values by option, for every stage; `stages.NAME.OPTION` is for one stage and takes precedence, and
                `vision_config.NAME` is one field.
            output_dir (`str` or `Path`, *optional*):
                Another folder of the run; paths into the old one remain as they are.
        """
        stages = {name: dict(stage.given) for name, stage in self.stages.items()}
        for key, value in sorted(options.items(), key=lambda option: option[0].startswith(STAGE_PREFIX)):
            names = list(stages)
            if key.startswith(STAGE_PREFIX):
                name, _, key = key.removeprefix(STAGE_PREFIX).partition(".")
                if name not in stages or not key:
                    raise UserError(
                        f"{self.path} has no stage for the option {STAGE_PREFIX}{name}.{key}: its stages are "
                        f"{', '.join(stages)}."
                    )
                names = [name]
            option, dot, config_field = key.partition(".")
            check_names(str(self.path), "option", [option], OPTIONS)
            for name in names:
                given = stages[name]
                fields = given.get(option) or {}
                if dot and not isinstance(fields, Mapping):
                    raise UserError(f"{self.path}: {option} is {fields!r} and has no fields, so there is no {key}.")
                given[option] = {**fields, config_field: value} if dot else value
        output_dir = self.output_dir if output_dir is None else Path(output_dir)
        return _build_recipe(self.path, output_dir, stages, self.eval_tasks, self.use_cpu, self.card)

    def save(self, path: Path) -> None:
        """Writes a YAML file that [`read_recipe`] reads as an equal recipe."""
        given = {name: stage.given for name, stage in self.stages.items()}
        run = {"eval_tasks": self.eval_tasks, "card": self.card}
        write_text(path, format_recipe(str(self.output_dir), given, run))


def first_different_value(there: Any, here: Any, location: str) -> str | None:
    """The first difference in nested mappings, as `LOCATION.KEY is 0.5 there and 5 here`; `None` if there is none."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for key in [*here, *(key for key in there if key not in here)]:
            old, new = (settings.get(key, NOT_GIVEN) for settings in (there, here))
            if difference := first_different_value(old, new, f"{location}.{key}"):
                return difference
        return None
    if there == here:
        return None
    old, new = ("not given" if value is NOT_GIVEN else repr(value) for value in (there, here))
    return f"{location} is {old} there and {new} here"


def first_difference(there: Recipe, here: Recipe) -> str | None:
    """
    The first option of a stage that differs, as `stages.pretrain.lambda_1 is 0.5 there and 5 here`; `None` if none
    does. Folders of the runs and `eval_tasks` may differ: they change nothing in training.
    """
    old, new = ({name: stage.given for name, stage in recipe.stages.items()} for recipe in (there, here))
    return first_different_value(old, new, "stages")


def _check_evaluation(location: str, data: DataArguments, training: HawaiiTrainingArguments) -> None:
    values = {"eval_strategy": IntervalStrategy(training.eval_strategy).value, "eval_on_start": training.eval_on_start}
    evaluating = [name for name, value in values.items() if value not in ("no", False)]
    if data.eval_data_path is None and evaluating:
        raise UserError(
            f"{location}: {evaluating[0]} is {values[evaluating[0]]} but no eval_data_path names the questions; add "
            "it, or leave both out."
        )
    if data.eval_data_path is not None and "eval_strategy" not in evaluating:
        raise UserError(
            f"{location}: eval_data_path {data.eval_data_path} would not be used; add eval_strategy: steps and "
            "eval_steps, or leave it out."
        )


def _check_streaming(location: str, data: DataArguments, training: HawaiiTrainingArguments) -> None:
    if not data.is_streaming:
        return
    if training.max_steps <= 0:
        raise UserError(f"{location}: a streamed source has no end, so the number of steps is needed: add max_steps.")
    if training.train_sampling_strategy != "random":
        raise UserError(
            f"{location}: train_sampling_strategy is {training.train_sampling_strategy}, but samples of a streamed "
            "source come in the order of reading; leave it out, or set streaming: false."
        )


def _build_stage(path: Path, name: str, given: Mapping[str, Any], output_dir: Path, use_cpu: bool) -> Stage:
    location = f"{path}, stage {name}"
    options = convert_options(location, dict(given))
    for key, check in CONFIG_CHECKS.items():
        if options.get(key) is not None:
            check(f"{location}, {key}", options[key])
    if options.get("lora") is not None:
        options["lora"] = convert_lora(f"{location}, lora", options["lora"])
    options |= {"output_dir": str(output_dir / name), "use_cpu": use_cpu or options.get("use_cpu", False)}

    def build(arguments):
        names = [each.name for each in fields(arguments) if each.init and each.name in options]
        return arguments(**{name: options[name] for name in names})

    try:
        model, data, training = build(ModelArguments), build(DataArguments), build(HawaiiTrainingArguments)
        objective_options = build(OBJECTIVES[training.objective].options_class)
        teachers = expand_teachers(training.teachers)
    except (ValueError, ImportError) as error:  # a value that transformers refuses, or a missing optional library
        raise UserError(f"{location}: {error}") from error
    _check_evaluation(location, data, training)
    check_frozen_base(location, model, training)
    _check_streaming(location, data, training)
    return Stage(name, model, data, training, objective_options, teachers, given)


def _check_continuation(path: Path, first: Stage, stage: Stage) -> None:
    """Checks the options that decide which modules exist: a stage continues with those of the one before, `first`."""
    values: dict[str, tuple] = {"objective": (first.training.objective, stage.training.objective)}
    if first.training.objective == stage.training.objective:
        for name in first.options.module_options:
            values[name] = (getattr(first.options, name), getattr(stage.options, name))
        built, wanted = ([teacher.name for teacher in each.distilled_teachers] for each in (first, stage))
        values["teachers"] = (built, wanted)
        for built, wanted in zip(first.distilled_teachers, stage.distilled_teachers):
            for name in (option.name for option in fields(TeacherConfig)):
                values[f"{name} of teacher {wanted.name}"] = (getattr(built, name), getattr(wanted, name))
    for name, (built, wanted) in values.items():
        leaves_out = name in first.options.module_options and isinstance(built, list) and {*wanted} <= {*built}
        if built != wanted and not leaves_out:
            raise UserError(
                f"{path}, stage {stage.name}: {name} is {wanted!r} here and {built!r} in stage {first.name}, "
                "but a later stage continues with the modules of the one before; use the same value in both."
            )


def _check_encoder(path: Path, recipe: Recipe) -> None:
    """Rejects text options for an encoder alone, and requires data_path for every other student."""
    for name, stage in recipe.stages.items():
        if not recipe.is_encoder_alone and not stage.data.sources:
            raise UserError(f"{path}, stage {name}: there is no data_path; name a data file, or several under data.")
        given = {**stage.given, **({"eval_tasks": ",".join(recipe.eval_tasks)} if recipe.eval_tasks else {})}
        text = [key for key in (*TEXT_OPTIONS, "eval_tasks", *LANGUAGE_OPTIONS) if given.get(key) is not None]
        if recipe.is_encoder_alone and text:
            raise UserError(
                f"{path}, stage {name}: {text[0]} is {given[text[0]]!r}, but the recipe's first stage names no "
                f"language model, so the encoder is trained alone, on images; leave {text[0]} out, or name a "
                "language_model, a text_config or a llava."
            )
        if recipe.is_encoder_alone and stage.options.lambda_1 == 0:
            raise UserError(
                f"{path}, stage {name}: lambda_1 is 0, but without a language model the teachers are all that the "
                "encoder learns from; give it a weight."
            )


def _build_recipe(
    path: Path,
    output_dir: Path,
    given: dict[str, dict[str, Any]],
    eval_tasks: list[str],
    use_cpu: bool,
    card: dict[str, Any],
) -> Recipe:
    first = next(iter(given.values()))
    student = {key: first[key] for key in STUDENT_OPTIONS if key in first}
    stages = {
        name: _build_stage(path, name, {**options, **student}, output_dir, use_cpu) for name, options in given.items()
    }
    recipe = Recipe(path, path.stem, output_dir, stages, eval_tasks, use_cpu, card)
    for previous, stage in pairwise(stages.values()):
        _check_continuation(path, previous, stage)
    _check_encoder(path, recipe)
    return recipe


def _check_given(location: str, name: str, options: Any, is_first: bool) -> None:
    if not isinstance(options, dict):
        raise UserError(f"{location}: its options are {options!r}; they must be a mapping.")
    if name == HUB_FOLDER or not re.fullmatch(r"[\w-]+", name):
        raise UserError(
            f"{location}: a stage is a folder of the run next to `{HUB_FOLDER}`; give it another name, of letters, "
            "digits, _ and -."
        )
    for key in ("output_dir", "eval_tasks", "card"):
        if key in options:
            raise UserError(f"{location}: {key} belongs to the complete run; move it to the shared keys.")
    student_options = [key for key in STUDENT_OPTIONS if key in options]
    if student_options and not is_first:
        raise UserError(
            f"{location}: {student_options[0]} has no effect, because a later stage starts from the stage before it; "
            "move it to the shared keys or to the first stage."
        )
    check_names(location, "option", options, OPTIONS)


def _check_card(path: Path, given: Any) -> dict[str, Any]:
    """Returns the fields of [`CardOptions`] that a recipe gives; raises a `UserError` if one is invalid."""
    location = f"{path}, card"
    if given is not None and not isinstance(given, dict):
        raise UserError(f"{location}: it is {given!r}; it must be a mapping, as in {{license: mit, language: en}}.")
    card = {name: value for name, value in (given or {}).items() if value is not None}
    check_names(location, "field", card, [option.name for option in fields(CardOptions)])
    try:
        CardOptions(**card)
    except UserError as error:
        raise UserError(f"{location}: {error}") from error
    return card


def read_recipe(recipe: str | Path, overrides: Sequence[str] | None = (), use_cpu: bool = False) -> Recipe:
    """
    Reads a recipe: keys shared by all stages and, under `stages`, the keys of each stage. `${output_dir}` in a value
    is the recipe's `output_dir`. With `extends: FILE`, relative to the recipe's folder, mappings and stages are merged
    key by key into those of the other recipe, and other values replace them.

    Args:
        recipe (`str` or `Path`):
            A YAML file, or the name of a built-in recipe, such as `hawaii_vicuna_7b`.
        overrides (`Sequence[str]`, *optional*):
            `key=value` replaces a shared key, `stages.NAME.key=value` a key of a stage; values are YAML.
        use_cpu (`bool`, *optional*, defaults to `False`):
            Ignores the accelerators of this process, for commands that do not train.

    Raises:
        UserError: the file is missing or not a recipe, or a key or value of any stage is invalid.
    """
    path = Path(os.path.normpath(find_recipe(recipe)))
    config = OmegaConf.create(read_yaml(path))
    for override in overrides or ():
        check_stages(path, OmegaConf.to_container(config))
        apply_override(config, override)
    unresolved: Any = OmegaConf.to_container(config)
    with explain_errors(f"{path} has a value that cannot be resolved", (OmegaConfBaseException, RecursionError)):
        check_interpolations(path, unresolved)
        content: Any = OmegaConf.to_container(config, resolve=True)
    check_stages(path, content)
    content = without_parents(content, f"{content.get('output_dir')}/..")
    stages = content.pop("stages")
    output_dir, tasks, card = (content.pop(key, None) for key in ("output_dir", "eval_tasks", "card"))
    if output_dir in (None, ""):
        raise UserError(f"{path} names no output_dir.")
    output_dir = convert_option(str(path), "output_dir", output_dir, str)
    for number, (name, options) in enumerate(stages.items()):
        location = f"{path}, stage {name}"
        _check_given(location, name, options, is_first=number == 0)
        check_names(location, "option", content, OPTIONS)
    tasks = [] if tasks is None else tasks if isinstance(tasks, list) else str(tasks).split(",")
    tasks = [str(task).strip() for task in tasks]
    card = _check_card(path, card)
    stages = {name: {**content, **options} for name, options in stages.items()}
    return _build_recipe(path, Path(output_dir), stages, tasks, use_cpu, card)
