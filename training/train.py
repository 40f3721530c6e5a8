"""Runs a recipe: each stage, resumed if it was interrupted, then the folder to publish."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import disable_fsdp_ram_efficient_loading, send_to_device
from transformers import set_seed

from ..files.atomic import read_json, write_json
from ..files.run_contents import HUB_FOLDER, MODEL_FOLDER, RESULTS_FILE, STAGE_FILE
from ..files.user_error import UserError
from ..hub_cards.export import export
from ..processing.encoder_processor import EncoderProcessor
from ..processing.processing_hawaii import HawaiiProcessor
from .callbacks import JsonLinesCallback
from .checkpoints import find_checkpoint, load_objective
from .data.conversation_dataset import Collator, ConversationDataset
from .data.images import ImageDataset, collate_images
from .data.questions import QuestionDataset
from .finished_stage import ObjectiveSettings
from .recipes.arguments import DataArguments
from .recipes.objectives import OBJECTIVES, StudentWithObjective
from .recipes.recipe import Stage, read_recipe
from .students.encoders import warn_of_other_teachers
from .students.language_models import register_code
from .students.student import build_student, continue_student
from .students.trainable import set_trainable
from .teachers.loading import load_teachers
from .trainer import HawaiiTrainer


NUM_SAMPLES = 64  # images whose features set the scale of the targets


def print_once(line: str) -> None:
    """Prints on the main process."""
    PartialState().print(line, flush=True)


def read_data(
    data_args: DataArguments, processor: HawaiiProcessor | EncoderProcessor, teachers: list
) -> tuple[ConversationDataset | ImageDataset, Callable[[list[dict]], dict]]:
    """The training data of a stage and its collator."""
    paths = (data_args.data_path, data_args.image_folder)
    size = max((teacher.image_size for teacher in teachers), default=None)
    options = {name: getattr(data_args, name) for name in ("bad_records", "image_share", "follow_links")}
    if isinstance(processor, EncoderProcessor):
        assert size is not None  # without a language model there are teachers
        return ImageDataset(*paths, processor, teacher_image_size=size, **options), collate_images
    options["max_length"] = data_args.max_length
    return ConversationDataset(*paths, processor, teacher_image_size=size, **options), Collator(processor, size)


def sample_teacher_features(dataset: ConversationDataset | ImageDataset, teachers: list, device: torch.device) -> list:
    """The features of each teacher, on the CPU, for images spread over the data, the same on every process."""
    step = max(1, len(dataset) // NUM_SAMPLES)
    samples = [dataset[index] for index in range(0, len(dataset), step)[:NUM_SAMPLES]]
    images = [sample["teacher_images"] for sample in samples if "teacher_images" in sample]
    if not images:
        raise UserError(
            f"{dataset.data_path}: none of the {len(samples)} sampled records has an image, but the targets are "
            "scaled with images; name a data_path with images for the first stage."
        )
    return [send_to_device(teacher(torch.cat(images).to(device)), "cpu") for teacher in teachers]


def run_stage(stage: Stage, previous: Path | None, model_folder: Path) -> None:
    """
    Trains one stage from the previous one, or from the recipe's starting point, and saves the finished model.

    Raises:
        UserError: training stopped before its last step.
    """
    model_args, data_args, args = stage.model, stage.data, stage.training
    set_seed(args.seed)
    objective_class = OBJECTIVES[args.objective]
    teachers = objective_class.prepare_teachers(load_teachers(stage.distilled_teachers, args.device))
    if previous is None:
        student, processor = build_student(model_args, data_args, len(teachers), args.objective)
    else:
        student, processor = continue_student(previous, model_args, data_args)
    set_trainable(student, args.trainable)
    objective = objective_class(stage.options, student, {teacher.name: teacher.grid for teacher in teachers})
    objective.set_trainable(args.trainable)
    if previous is not None:
        load_objective(objective, previous)

    dataset, collator = read_data(data_args, processor, teachers)
    questions = None
    if data_args.eval_data_path is not None:
        assert isinstance(processor, HawaiiProcessor)  # a recipe of an encoder alone has no questions
        questions = QuestionDataset(
            data_args.eval_data_path, data_args.image_folder, processor, follow_links=data_args.follow_links
        )
    checkpoint = find_checkpoint(args.output_dir)
    if checkpoint is not None:
        print_once(f"Resuming from {checkpoint}.")
        args.eval_on_start = False  # the checkpoint has been evaluated
    elif previous is None and teachers:
        if objective_class.has_adapters:
            warn_of_other_teachers(model_args.vision_tower, [teacher.name for teacher in teachers])
        objective.standardize(sample_teacher_features(dataset, teachers, args.device))
    trainer = HawaiiTrainer(
        model=StudentWithObjective(student, objective),
        teachers=teachers,
        max_batch_tokens=data_args.max_batch_tokens,
        args=args,
        train_dataset=dataset,
        eval_dataset=questions,
        data_collator=collator,
        processing_class=processor,
        callbacks=[JsonLinesCallback()],
    )
    output = trainer.train(resume_from_checkpoint=checkpoint)
    if output.global_step < trainer.state.max_steps:
        trainer.accelerator.wait_for_everyone()  # the checkpoint has its name
        checkpoint = find_checkpoint(args.output_dir)
        source = "starts over, as it has no checkpoint" if checkpoint is None else f"continues from {checkpoint}"
        raise UserError(
            f"Training stopped early, after step {output.global_step} of {trainer.state.max_steps}, so the stage is "
            f"not finished: the same command {source}."
        )
    used = teachers if stage.options.lambda_1 else []  # without weight a distillation loss has no effect
    report = {
        "steps": output.global_step,
        "samples": len(dataset),
        "seconds": round(trainer.timer.seconds, 1),
        "learning_rate": args.learning_rate,
        "batch_size": trainer.get_total_train_batch_size(args),
        "epochs": round(trainer.state.epoch, 2),
        "objective": args.objective,
        "teachers": {teacher.name: {"image_size": teacher.image_size, "grid": teacher.grid} for teacher in used},
        "num_parameters": student.num_parameters(),
        "question": dataset.question,
        "log": next((entry for entry in reversed(trainer.state.log_history) if "loss" in entry), {}),
    }
    settings = ObjectiveSettings(args.objective, stage.options, stage.distilled_teachers)
    trainer.save_whole(model_folder, report, settings)


def finish(run_folder: Path, model_folder: Path, stages: dict[str, dict]) -> None:
    """Exports the last stage's model and writes the report of the run."""
    if not PartialState().is_main_process:
        return
    results = {
        "name": run_folder.resolve().name,
        "train_seconds": round(sum(stage["seconds"] for stage in stages.values()), 1),
        "num_parameters": list(stages.values())[-1]["num_parameters"],
        "stages": stages,
    }
    write_json(run_folder / RESULTS_FILE, results)
    export(model_folder, run_folder / HUB_FOLDER, results)
    print_once(f"The folder to publish: {run_folder / HUB_FOLDER}")


def train(recipe: str, overrides: Sequence[str] | None = None) -> None:
    """
    Runs a recipe's stages and exports the result. Finished stages are skipped; an interrupted stage resumes from its
    last checkpoint. [`run_contents`] lists the files written to the recipe's `output_dir`.

    Args:
        recipe (`str`):
            A YAML file, or the name of a built-in recipe.
        overrides (`Sequence[str]`, *optional*):
            `key=value` or `stages.NAME.key=value`.
    """
    # Under FSDP, transformers would load weights on one process only and let FSDP fill the others; but FSDP does not
    # wrap the teachers.
    disable_fsdp_ram_efficient_loading()
    plan = read_recipe(recipe, overrides)
    if plan.is_encoder_alone:
        print_once("The recipe names no language model: the encoder is trained alone, on images.")
    start = next(iter(plan.stages.values())).model
    if start.trust_remote_code and start.language_model is not None:
        register_code(start.language_model)  # finished stages need it, too
    previous, results = None, {}
    for number, name in enumerate(plan.stages, start=1):
        model_folder = plan.output_dir / name / MODEL_FOLDER
        state = "already done." if model_folder.is_dir() else "started."
        print_once(f"Stage {number} of {len(plan.stages)}, {name}: {state}")
        if not model_folder.is_dir():
            run_stage(plan.build_stage(name), previous, model_folder)
        results[name] = read_json(model_folder / STAGE_FILE)
        previous = model_folder
    finish(plan.output_dir, previous, results)
