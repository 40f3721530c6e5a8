"""Runs a recipe: each stage, resumed if it was interrupted, then the folder to publish."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import disable_fsdp_ram_efficient_loading
from transformers import set_seed
from transformers.integrations import deepspeed

from ..drawing.style import has_matplotlib
from ..files.atomic import read_json, write_json
from ..files.manifest import check_manifest, write_manifest
from ..files.model_folder import ADAPTER_CONFIG
from ..files.run_contents import HUB_FOLDER, LOG_FILE, MODEL_FOLDER, RESULTS_FILE, STAGE_FILE
from ..files.user_error import Stopped, UserError
from ..files.write_errors import explain_write_errors
from ..hub_cards.export import export
from ..processing.encoder_processor import EncoderProcessor
from ..processing.processing_hawaii import HawaiiProcessor
from .callbacks import JsonLinesCallback, read_log
from .checking.stages import check_stages
from .checkpoints import FoundCheckpoint, find_checkpoint, list_checkpoints, load_objective
from .data.processes import decide_once
from .data.questions import QuestionDataset
from .distribution.strategy import create_accelerator, describe_strategy, whole_weights
from .finished_stage import ObjectiveSettings
from .identity import check_processes, check_run, describe_stage
from .monitoring.report import report_training
from .objectives.encoder_passes import Student, encoder_of
from .publishing.attachments import attach_files
from .publishing.card_facts import describe_card
from .publishing.recorded_origins import record_origins
from .recipes.objectives import OBJECTIVES, StudentWithObjective
from .recipes.recipe import Recipe, Stage, read_recipe
from .run_lock import RunLock
from .stage_data import read_data, sample_teacher_features
from .stop_requests import StopRequests
from .students.encoders import warn_of_other_teachers
from .students.frozen_base import FrozenBase
from .students.language_models import register_code
from .students.packing import check_packing
from .students.student import build_student, continue_student, load_student
from .students.trainable import set_trainable
from .teacher_cache.cached_teacher import open_cache
from .teachers.loading import load_teachers
from .trainer import HawaiiTrainer


def print_once(line: str) -> None:
    """Prints on the main process."""
    PartialState().print(line, flush=True)


def find_resumable(output_dir: str, identity: dict) -> FoundCheckpoint | None:
    """
    The newest whole checkpoint of a stage; `None` if the stage has none.

    Raises:
        UserError: there are checkpoints but none is whole, or the newest whole one is of another run.
    """
    checkpoint = find_checkpoint(output_dir)
    if checkpoint is not None:
        check_run(checkpoint.path, checkpoint.identity, identity)
    return checkpoint


def announce_strategy(plan: Recipe, name: str, described: str | None) -> str:
    """Prints how a stage is distributed, unless that is `described` already; returns the description."""
    stage = plan.build_stage(name)
    strategy = describe_strategy(create_accelerator(stage.training), stage.model.dtype)
    if str(strategy) != described:
        print_once(str(strategy))
    return str(strategy)


def start_student(stage: Stage, previous: Path | None) -> tuple[Student, HawaiiProcessor | EncoderProcessor]:
    """The student with which a stage starts, in full precision, and its processor; the same at each call."""
    if stage.model.has_frozen_base:
        set_seed(stage.training.seed)
    with whole_weights(stage.training):
        if previous is None:
            return build_student(stage.model, stage.data, len(stage.distilled_teachers), stage.training.objective)
        return continue_student(previous, stage.model, stage.data)


def run_stage(stage: Stage, previous: Path | None, model_folder: Path, requests: StopRequests) -> None:
    """
    Trains one stage from the previous one, or from the recipe's starting point, and saves the finished model.

    Raises:
        UserError: training stopped before its last step, or there are checkpoints from which it cannot continue.
        Stopped: a signal stopped training; a checkpoint is saved.
    """
    model_args, data_args, args = stage.model, stage.data, stage.training
    identity = decide_once(describe_stage, stage, previous, args.world_size)
    checkpoint = decide_once(find_resumable, args.output_dir, identity)
    if checkpoint is not None:
        for skipped in checkpoint.skipped:
            print_once(skipped)
        print_once(f"Resuming from {checkpoint.path}.")
    objective_class = OBJECTIVES[args.objective]
    matching = None if data_args.teacher_cache is None else objective_class.cached_matching(stage.options)
    feature_cache, teachers = None, []
    if matching is None:
        if data_args.teacher_cache is not None and stage.distilled_teachers:
            print_once(f"The objective {args.objective} needs more than a teacher_cache contains: its teachers run.")
        with whole_weights(args):
            teachers = load_teachers(stage.distilled_teachers, args.device, args.shard_teachers)
        teachers = objective_class.prepare_teachers(teachers)
    set_seed(args.seed)  # after the teachers, so that the student is the same with and without a cache
    student, processor = start_student(stage, previous)
    if matching is not None and data_args.teacher_cache is not None:
        vision, configs = encoder_of(student).config, stage.distilled_teachers
        grid, images = vision.patches_a_side, processor.image_processor
        tiles = data_args.distill_tiles
        feature_cache = open_cache(data_args.teacher_cache, configs, images, grid, matching, tiles)
        teachers = feature_cache.teachers
    num_parameters = student.num_parameters()
    if data_args.packing:
        check_packing(student)
    set_trainable(student, args.trainable)
    base = None
    if model_args.has_frozen_base:
        source = previous or model_args.llava or model_args.language_model or "the language model"
        base = FrozenBase(lambda: start_student(stage, previous)[0], student, model_args, args, str(source))
    objective = objective_class(stage.options, student, {teacher.name: teacher.grid for teacher in teachers})
    objective.set_trainable(args.trainable)
    if previous is not None:
        load_objective(objective, previous)
        if not objective.needs_features:
            teachers, feature_cache = [], None

    dataset, collator = read_data(data_args, processor, teachers, args.seed, feature_cache)
    questions = None
    if data_args.eval_data_path is not None:
        assert isinstance(processor, HawaiiProcessor)  # a recipe of an encoder alone has no questions
        questions = QuestionDataset(
            data_args.eval_data_path, data_args.image_folder, processor, follow_links=data_args.follow_links
        )
    if checkpoint is not None:
        args.eval_on_start = False  # the checkpoint has been evaluated
    elif previous is None and teachers:
        if objective_class.has_adapters:
            warn_of_other_teachers(model_args.vision_tower, [teacher.name for teacher in teachers])
        objective.standardize(sample_teacher_features(dataset, teachers, args.device))
        if not objective.needs_features:
            teachers = []
    trainer = HawaiiTrainer(
        model=StudentWithObjective(student, objective),
        teachers=teachers,
        base=base,
        max_batch_tokens=data_args.max_batch_tokens,
        max_batch_tiles=data_args.max_batch_tiles,
        args=args,
        train_dataset=dataset,
        eval_dataset=questions,
        data_collator=collator,
        processing_class=processor,
        callbacks=[JsonLinesCallback()],
        identity={**identity, "features": feature_cache.folder.name if feature_cache else None},
        stop_requests=requests,
    )
    if checkpoint is not None:
        check_processes(checkpoint.path, checkpoint.identity, trainer.identity, args)
    with requests.deferred():
        output = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint.path))
        check_is_finished(trainer, output.global_step, requests)
        save_finished(stage, trainer, output.global_step, num_parameters, model_folder)
    deepspeed.unset_hf_deepspeed_config()  # models that are loaded from now on are whole


def check_is_finished(trainer: HawaiiTrainer, step: int, requests: StopRequests) -> None:
    """Raises [`Stopped`] if a signal stopped training, even in its last step, [`UserError`] if something else did."""
    has_stopped = trainer.stop_callback.has_stopped
    if step == trainer.state.max_steps and not has_stopped:
        return
    trainer.accelerator.wait_for_everyone()  # until the checkpoint has its name
    checkpoints = list_checkpoints(trainer.args.output_dir)
    source = f"continues from {checkpoints[-1]}" if checkpoints else "starts over, as it has no checkpoint"
    message = (
        f"after step {step} of {trainer.state.max_steps}, so the stage is not finished: the same command {source}."
    )
    if has_stopped:
        raise Stopped(f"Training was stopped by {requests.name} {message}")
    raise UserError(f"Training stopped early, {message}")


def save_finished(stage: Stage, trainer: HawaiiTrainer, step: int, num_parameters: int, model_folder: Path) -> None:
    """Saves a stage that has reached its last step, with its report."""
    report = {**report_training(trainer), "steps": step, "num_parameters": num_parameters}
    report["origins"] = record_origins(stage)
    settings = ObjectiveSettings(stage.training.objective, stage.options, stage.distilled_teachers)
    trainer.save_whole(model_folder, report, settings)


def check_stage(model_folder: Path, stage: Stage, previous: Path | None) -> None:
    """
    Checks a finished stage before another one starts from it or it is exported.

    Raises:
        UserError: a file is missing, damaged or added, or the recipe, the data or the stage before it has changed
            since; names the file or the first difference.
    """
    try:
        identity = check_manifest(model_folder)
    except UserError as error:
        raise UserError(
            f"{error}. Restore it from a copy, or remove {model_folder}: the stage is then finished again from its "
            "last checkpoint, or trained again if it has none."
        ) from error
    check_run(model_folder, identity, describe_stage(stage, previous, PartialState().num_processes))


def find_unfinished(folders: dict[str, Path]) -> list[str]:
    """
    Returns the names of the stages that have no model folder in `folders`.

    Raises:
        UserError: a stage is finished, but one before it is not.
    """
    names = list(folders)
    unfinished = [name for name in names if not folders[name].is_dir()]
    for later in names[names.index(unfinished[0]) :] if unfinished else []:
        if later not in unfinished:
            raise UserError(
                f"Stage {later} is finished, but stage {unfinished[0]} before it is not: restore "
                f"{folders[unfinished[0]]}, or remove {folders[later].parent} to train stage {later} again after it, "
                "or give another output_dir."
            )
    return unfinished


@contextmanager
def complete_model(run_folder: Path, model_folder: Path) -> Iterator[Path]:
    """Yields the folder of a stage's complete model: a temporary one if its LoRA was saved separately."""
    if not (model_folder / ADAPTER_CONFIG).is_file():
        yield model_folder
        return
    merged = run_folder / "merged.incomplete"
    shutil.rmtree(merged, ignore_errors=True)
    identity = check_manifest(model_folder)
    try:
        load_student(model_folder, "auto").save_pretrained(merged)
        HawaiiProcessor.from_pretrained(model_folder, trust_remote_code=False).save_pretrained(merged)
        write_manifest(merged, identity)
        yield merged
    finally:
        shutil.rmtree(merged, ignore_errors=True)


def finish(plan: Recipe, model_folder: Path, stages: dict[str, dict]) -> None:
    """Exports the last stage's model and writes the report of the run."""
    if not PartialState().is_main_process:
        return
    run_folder = plan.output_dir
    paths = {name: run_folder / name / LOG_FILE for name in stages}
    origins = [stage.get("origins", {}) for stage in stages.values()]  # their keys may be paths of this machine
    stages = {name: {key: value for key, value in stage.items() if key != "origins"} for name, stage in stages.items()}
    results = {
        "name": run_folder.resolve().name,
        "train_seconds": round(sum(stage["seconds"] for stage in stages.values()), 1),
        "num_parameters": list(stages.values())[-1]["num_parameters"],
        "stages": stages,
    }
    with explain_write_errors(run_folder, "run the same command again, which only writes the rest."):
        write_json(run_folder / RESULTS_FILE, results)
        logs = {name: read_log(path) for name, path in paths.items() if path.is_file()}
        facts = {**results, "card": describe_card(plan, origins)}
        with complete_model(run_folder, model_folder) as source:
            is_changed = export(
                source, run_folder / HUB_FOLDER, facts, lambda folder: attach_files(folder, plan, logs)
            )
    if not is_changed:
        print_once(f"{run_folder / HUB_FOLDER} already has this model and is left as it is.")
    if not has_matplotlib():
        print_once(
            f"Without matplotlib, a card has no picture of the losses; with it, `hawaii plot {run_folder}` draws it."
        )
    print_once(f"The folder to publish: {run_folder / HUB_FOLDER}")


def run_stages(plan: Recipe, folders: dict[str, Path], described: str | None, requests: StopRequests) -> None:
    """
    Trains the unfinished stages, checks the others, and exports the last one.

    Args:
        plan (`Recipe`):
            The recipe.
        folders (`dict[str, Path]`):
            The model folder of each stage.
        described (`str`, *optional*):
            The strategy that was printed.
        requests (`StopRequests`):
            Records signals.

    Raises:
        UserError, Stopped: as for [`train`].
    """
    unfinished = decide_once(find_unfinished, folders)
    previous, results = None, {}
    for number, (name, model_folder) in enumerate(folders.items(), start=1):
        title = f"Stage {number} of {len(folders)}, {name}"
        if name not in unfinished:
            print_once(f"{title}: already done.")
            decide_once(check_stage, model_folder, plan.stages[name], previous)
        else:
            if name == unfinished[0]:
                check_stages(plan, unfinished, previous)
            described = announce_strategy(plan, name, described)
            stage = plan.build_stage(name)  # again, for the Trainer's own accelerator
            if plan.is_encoder_alone:
                print_once("The recipe names no language model: the encoder is trained alone, on images.")
            print_once(f"{title}: started.")
            run_stage(stage, previous, model_folder, requests)
            if number < len(folders) and requests.is_requested():
                raise Stopped(f"Stopped by {requests.name} after stage {name}: the same command starts the next.")
        results[name] = read_json(model_folder / STAGE_FILE)
        previous = model_folder
    with requests.deferred():
        finish(plan, previous, results)


def train(recipe: str, overrides: Sequence[str] | None = None) -> None:
    """
    Runs a recipe's stages and exports the result. Finished stages are skipped; an interrupted stage resumes from its
    last checkpoint. [`run_contents`] lists the files written to the recipe's `output_dir`.

    Args:
        recipe (`str`):
            A YAML file, or the name of a built-in recipe.
        overrides (`Sequence[str]`, *optional*):
            `key=value` or `stages.NAME.key=value`.

    Raises:
        UserError: the recipe, the data, a model, a checkpoint or a finished stage cannot be used, or another run uses
            `output_dir`.
        Stopped: SIGTERM or SIGUSR1 was received; everything is saved that the same command needs to continue.
    """
    # Under FSDP, transformers would load weights on one process only and let FSDP fill the others; but FSDP does not
    # wrap the teachers.
    disable_fsdp_ram_efficient_loading()
    plan = read_recipe(recipe, overrides)
    start = next(iter(plan.stages.values())).model
    if start.trust_remote_code and start.language_model is not None:
        register_code(start.language_model)  # finished stages need it, too
    with StopRequests() as requests:
        folders = {name: plan.output_dir / name / MODEL_FOLDER for name in plan.stages}
        # The first line is the strategy, even if the first stages are finished.
        first = next((name for name in folders if not folders[name].is_dir()), None)
        described = None if first is None else announce_strategy(plan, first, None)
        subfolders = [folder for name in folders for folder in (plan.output_dir / name, folders[name])]
        with RunLock(plan.output_dir, [*subfolders, plan.output_dir / HUB_FOLDER]):
            run_stages(plan, folders, described, requests)
