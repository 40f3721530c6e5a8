"""Runs a recipe: each stage from where it stopped, then the folder to publish."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import disable_fsdp_ram_efficient_loading, send_to_device
from transformers import set_seed

from ..files.atomic import write_json
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
from .recipes.arguments import DataArguments, names_encoder_alone
from .recipes.objectives import OBJECTIVES, StudentWithObjective
from .recipes.recipe import parse_stage, read_recipe
from .students.encoders import warn_of_other_teachers
from .students.student import build_student, continue_student
from .students.trainable import set_trainable
from .teachers.loading import load_teachers
from .teachers.presets import expand_teachers
from .trainer import HawaiiTrainer


NUM_SEEN = 64  # images whose features set the scale of the targets


def say(line: str) -> None:
    """Prints on the main process."""
    PartialState().print(line, flush=True)


def read_data(
    data_args: DataArguments, processor: HawaiiProcessor | EncoderProcessor, teachers: list
) -> tuple[ConversationDataset | ImageDataset, Callable[[list[dict]], dict]]:
    """What a stage learns from, and what makes batches of it."""
    paths = (data_args.data_path, data_args.image_folder)
    size = max((teacher.image_size for teacher in teachers), default=None)
    options = {"bad_records": data_args.bad_records, "image_share": data_args.image_share}
    if isinstance(processor, EncoderProcessor):
        assert size is not None  # without a language model there are teachers
        return ImageDataset(*paths, processor, teacher_image_size=size, **options), collate_images
    options["max_length"] = data_args.max_length
    return ConversationDataset(*paths, processor, teacher_image_size=size, **options), Collator(processor, size)


def see_some(dataset: ConversationDataset | ImageDataset, teachers: list, device: torch.device) -> list:
    """What each teacher sees in some images from all over the data, the same on every process: features on the CPU."""
    step = max(1, len(dataset) // NUM_SEEN)
    samples = [dataset[index] for index in range(0, len(dataset), step)[:NUM_SEEN]]
    images = [sample["teacher_images"] for sample in samples if "teacher_images" in sample]
    if not images:
        raise UserError(
            f"{dataset.data_path}: none of the {len(samples)} records looked at has an image, but teachers need "
            "images to begin with; name a data_path with images for the first stage."
        )
    return [send_to_device(teacher(torch.cat(images).to(device)), "cpu") for teacher in teachers]


def run_stage(options: dict, stage: str, previous: Path | None, model_folder: Path) -> None:
    """Trains one stage from the stage before it, or from what the recipe names, and saves it whole."""
    model_args, data_args, args = parse_stage(options, stage)
    set_seed(args.seed)
    kind = OBJECTIVES[args.objective]
    loaded = load_teachers(expand_teachers(args.teachers), args.device) if kind.uses_teachers else []
    teachers = kind.prepare_teachers(loaded)
    if previous is None:
        student, processor = build_student(model_args, data_args, len(teachers), args.objective)
    else:
        student, processor = continue_student(previous, model_args, data_args)
    set_trainable(student, args.trainable)
    objective = kind(args, student, {teacher.name: teacher.grid for teacher in teachers})
    if previous is not None:
        load_objective(objective, previous)

    dataset, collator = read_data(data_args, processor, teachers)
    questions = None
    if data_args.eval_data_path is not None:
        assert isinstance(processor, HawaiiProcessor)  # recipes of an encoder alone name no questions
        questions = QuestionDataset(data_args.eval_data_path, data_args.image_folder, processor)
    checkpoint = find_checkpoint(args.output_dir)
    if checkpoint is not None:
        say(f"Going on from {checkpoint}.")
        args.eval_on_start = False  # what it starts from has been measured
    elif previous is None and teachers:
        if kind.has_adapters:
            warn_of_other_teachers(model_args.vision_tower, [teacher.name for teacher in teachers])
        objective.standardize(see_some(dataset, teachers, args.device))
    trainer = HawaiiTrainer(
        model=StudentWithObjective(student, objective),
        teachers=teachers,
        args=args,
        train_dataset=dataset,
        eval_dataset=questions,
        data_collator=collator,
        processing_class=processor,
        callbacks=[JsonLinesCallback()],
    )
    output = trainer.train(resume_from_checkpoint=checkpoint)
    taught = teachers if args.lambda_1 else []  # without weight a distillation loss teaches nothing
    report = {
        "steps": output.global_step,
        "samples": len(dataset),
        "seconds": round(trainer.timer.seconds, 1),
        "learning_rate": args.learning_rate,
        "batch_size": trainer.get_total_train_batch_size(args),
        "epochs": round(trainer.state.epoch, 2),
        "objective": args.objective,
        "teachers": {teacher.name: {"image_size": teacher.image_size, "grid": teacher.grid} for teacher in taught},
        "num_parameters": student.num_parameters(),
        "question": dataset.question,
        "log": next((entry for entry in reversed(trainer.state.log_history) if "loss" in entry), {}),
    }
    trainer.save_whole(model_folder, report)


def finish(run_folder: Path, model_folder: Path, stages: dict[str, dict]) -> None:
    """Exports the last stage's model and writes what training cost."""
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
    say(f"The folder to publish: {run_folder / 'hub'}")


def train(recipe: str, overrides: list[str] | None = None) -> None:
    """
    Runs a recipe's stages and exports the result. What is finished is skipped, what was interrupted goes on from its
    last checkpoint.

    Leaves, under the recipe's `output_dir`: for each stage a folder with its `model` and `log.jsonl`; the folder
    `hub`, to be published; and `train_results.json`.

    Args:
        recipe (`str`):
            The YAML file.
        overrides (`list[str]`, *optional*):
            `key=value` or `stages.NAME.key=value`.
    """
    # Under FSDP, transformers would read weights on one process and leave those of the others empty, for FSDP to fill;
    # but teachers are none of what FSDP fills.
    disable_fsdp_ram_efficient_loading()
    stages = read_recipe(recipe, overrides)
    run_folder = Path(next(iter(stages.values()))["output_dir"])
    if names_encoder_alone(next(iter(stages.values()))):
        say("The recipe names no language model: its encoder learns alone, from images.")
    previous, results = None, {}
    for number, (stage, options) in enumerate(stages.items(), start=1):
        model_folder = run_folder / stage / MODEL_FOLDER
        say(f"Stage {number} of {len(stages)}, {stage}: " + ("already done." if model_folder.is_dir() else "begins."))
        if not model_folder.is_dir():
            run_stage(options, stage, previous, model_folder)
        results[stage] = json.loads((model_folder / STAGE_FILE).read_text(encoding="utf-8"))
        previous = model_folder
    finish(run_folder, previous, results)
