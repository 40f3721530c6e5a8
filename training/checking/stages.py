"""Checks the stages of a run before one of them trains: a mistake in a later stage would be found days later."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, get_scheduler
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from ...configuration.configuration_hawaii import HawaiiConfig, HawaiiVisionConfig
from ...files.model_folder import ADAPTER_CONFIG
from ...files.run_contents import BASE_FOLDER
from ...files.user_error import UserError, explain_errors
from ...modeling_hawaii.modeling_hawaii import HawaiiForConditionalGeneration
from ...modeling_hawaii.vision_hawaii import HawaiiVisionModel
from ...processing.processing_hawaii import HawaiiProcessor
from ..counting.recipes import outline_student
from ..counting.samples import check_bounds
from ..data.processes import decide_once
from ..distribution.strategy import check_strategy, create_accelerator, describe_strategy, whole_weights
from ..objectives.encoder_passes import Student
from ..recipes.arguments import HawaiiTrainingArguments
from ..recipes.objectives import OBJECTIVES
from ..recipes.recipe import Recipe, Stage
from ..sources.image_folder import find_image_folder
from ..sources.readers import check_data_file
from ..students.encoders import holds_encoder
from ..students.processor import adapt_processor
from ..students.student import set_tiles
from ..students.trainable import check_rates, part_of, set_trainable
from ..teacher_cache.cached_teacher import find_features
from .check import build_stage_processor


UNLIMITED_STEPS = 10**6  # of a schedule whose number of steps depends on the data


@contextmanager
def _locate_errors(location: str) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(f"{location}: {error}") from error


def _check_trackers(args: HawaiiTrainingArguments) -> None:
    names: Any = args.report_to
    with explain_errors(f"report_to is {', '.join(names)}, which cannot be used", (RuntimeError, ValueError)):
        for tracker in get_reporting_integration_callbacks(names):
            tracker()


def _check_optimizer(args: HawaiiTrainingArguments, model: torch.nn.Module) -> None:
    """Creates the optimizer of one weight, and its schedule; of optimizers that need all modules only the options."""
    weights = [torch.nn.Parameter(torch.zeros(1))]
    optimizer, scheduler = OptimizerNames(args.optim), SchedulerType(args.lr_scheduler_type)
    with explain_errors(f"optim is {optimizer.value} (optim_args: {args.optim_args}), which cannot be used"):
        optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
        if not options.keys() & {"model", "params", "optimizer_dict"}:
            optimizer_class(weights, **options)
    schedule = f"lr_scheduler_type is {scheduler.value} (lr_scheduler_kwargs: {args.lr_scheduler_kwargs})"
    num_steps = args.max_steps if args.max_steps > 0 else UNLIMITED_STEPS
    with explain_errors(f"{schedule}, which cannot be used"):
        get_scheduler(
            scheduler,
            torch.optim.SGD(weights, lr=args.learning_rate),
            num_warmup_steps=args.get_warmup_steps(num_steps),
            num_training_steps=num_steps,
            scheduler_specific_kwargs=args.lr_scheduler_kwargs,
        )


def _check_files(stage: Stage) -> None:
    """Checks that the data and the cache of a stage exist; `hawaii check` reads the data."""
    data = stage.data
    for number, source in enumerate(data.sources):
        with _locate_errors("data_path" if data.data is None else f"data[{number}]"):
            source.check_exists()
    if data.image_folder:
        with _locate_errors("image_folder"):
            find_image_folder(data.image_folder)
    if data.eval_data_path is not None:
        with _locate_errors("eval_data_path"):
            check_data_file(data.eval_data_path)
    if data.teacher_cache is not None and OBJECTIVES[stage.training.objective].cached_matching(stage.options):
        find_features(data.teacher_cache)


def _check_student(stage: Stage, student: Student, processor: HawaiiProcessor | None) -> None:
    """Checks the options that depend on the student, which has no weights."""
    if processor is not None:
        assert isinstance(student, HawaiiForConditionalGeneration)
        adapt_processor(processor, stage.model, stage.data)
        set_tiles(student, processor.image_grid_pinpoints)
        check_bounds(stage, student.config)
    args, objective = stage.training, OBJECTIVES[stage.training.objective]
    trainable: Any = args.trainable
    set_trainable(student, trainable)
    parts = {part_of(name) for name, _ in student.named_parameters()}
    if objective.projections_learn(["projections"]):
        parts.add("projections")
    if not parts & set(trainable):
        raise UserError(
            f"trainable is {trainable!r}, but the stage has none of these parts, so it would train nothing; name some "
            f"of {', '.join(sorted(parts))}."
        )
    check_rates(args.learning_rates, parts & {*trainable, "projections"})
    if stage.model.lora is not None:
        from ..students.lora import add_lora

        with torch.device("meta"):
            add_lora(copy.deepcopy(student), stage.model.lora)


def _outline_saved(folder: Path) -> Student:
    """Builds the student of a finished stage without weights."""
    base = folder.resolve().parent / BASE_FOLDER if (folder / ADAPTER_CONFIG).is_file() else folder
    with torch.device("meta"):
        if holds_encoder(base):
            return HawaiiVisionModel(HawaiiVisionConfig.from_pretrained(base))
        return HawaiiForConditionalGeneration(HawaiiConfig.from_pretrained(base))


def _start(recipe: Recipe, previous: Path | None) -> tuple[Student, HawaiiProcessor | None]:
    """
    Builds the student of the first unfinished stage, without weights, and its processor; `None` for an encoder alone,
    whose processor depends on no other option.
    """
    first = next(iter(recipe.stages.values()))
    if previous is None:
        student = outline_student(first.model, len(first.distilled_teachers), first.training.objective)
        if recipe.is_encoder_alone:
            return student, None
        # Its own tiles are checked like those of the other stages, whose errors name the stage.
        squares = None if first.data.image_grid_pinpoints is None else []
        first = replace(first, data=replace(first.data, image_grid_pinpoints=squares))
        processor = build_stage_processor(recipe, first)
        assert isinstance(processor, HawaiiProcessor)
        return student, processor
    if recipe.is_encoder_alone:
        return _outline_saved(previous), None
    trust = first.model.trust_remote_code
    return _outline_saved(previous), HawaiiProcessor.from_pretrained(previous, trust_remote_code=trust)


def _check_options(recipe: Recipe, names: Sequence[str], previous: Path | None) -> None:
    start = None
    try:
        start = _start(recipe, previous)
    except (OSError, UserError):
        pass  # the first of the stages explains it, when it builds the student
    for name in names:
        stage = recipe.stages[name]
        with _locate_errors(f"{recipe.path}, stage {name}"):
            _check_trackers(stage.training)
            _check_optimizer(stage.training, torch.nn.Linear(1, 1) if start is None else start[0])
            _check_files(stage)
            if start is not None:
                _check_student(stage, *start)


def check_stages(recipe: Recipe, names: Sequence[str], previous: Path | None) -> None:
    """
    Checks the stages of a run that are not finished, without training, weights or records. It takes seconds. Every
    process must call it.

    Args:
        recipe (`Recipe`):
            The recipe.
        names (`Sequence[str]`):
            The stages, in order.
        previous (`Path`, *optional*):
            Model folder of the stage from which the first one starts; the recipe's starting point if not given.

    Raises:
        UserError: a stage demands another strategy; a tracker, an optimizer, a schedule or a chat template cannot be
            used; a file or folder is missing; or the student does not have a part, layer or size. The message names
            the recipe and the stage.
    """
    for name in names:
        stage = recipe.build_stage(name)
        with _locate_errors(f"{recipe.path}, stage {name}"):
            check_strategy(describe_strategy(create_accelerator(stage.training), stage.model.dtype), stage)
    with whole_weights(stage.training):  # ZeRO-3 would partition the outlines, which have no weights
        decide_once(_check_options, recipe, names, previous)
