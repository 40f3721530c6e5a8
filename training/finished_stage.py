"""A finished stage, taken up again with the teachers and the objective that it learned from."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn
from transformers import TrainingArguments

from .. import HawaiiForConditionalGeneration, HawaiiProcessor  # from the root, which registers the Auto classes
from ..files.atomic import write_json
from ..files.run_contents import MODEL_FOLDER, OBJECTIVE_FILE, OBJECTIVE_SETTINGS_FILE
from ..files.user_error import UserError
from ..processing.encoder_processor import EncoderProcessor
from .checkpoints import load_objective
from .objectives.encoder_passes import Student
from .recipes.arguments import HawaiiTrainingArguments
from .recipes.objectives import OBJECTIVES
from .students.encoders import holds_encoder, load_encoder
from .teachers.config import TeacherConfig
from .teachers.loading import load_teachers
from .teachers.presets import expand_teachers
from .teachers.teacher import Teacher


@dataclass
class FinishedStage:
    """
    Args:
        folder (`Path`):
            Where it was saved.
        student (`HawaiiForConditionalGeneration` or `HawaiiVisionModel`):
            What it taught, on the CPU.
        processor (`HawaiiProcessor` or `EncoderProcessor`):
            The student's.
        teachers (`list[Teacher]`):
            In the order of the objective's.
        objective (`nn.Module`):
            With the projections as they were at the end.
    """

    folder: Path
    student: Student
    processor: HawaiiProcessor | EncoderProcessor
    teachers: list[Teacher]
    objective: nn.Module


def save_settings(args: HawaiiTrainingArguments, folder: Path) -> None:
    """Writes what the objective was made with: its own arguments, the teachers' with every field of a preset."""
    general = {field.name for field in fields(TrainingArguments)}
    settings = {field.name: getattr(args, field.name) for field in fields(args) if field.name not in general}
    used = args.teachers if OBJECTIVES[args.objective].uses_teachers else []
    settings["teachers"] = [asdict(config) for config in expand_teachers(used)]
    for config in settings["teachers"]:
        if Path(config["checkpoint"]).is_dir():
            config["checkpoint"] = str(Path(config["checkpoint"]).resolve())  # from wherever it is taken up
    write_json(folder / OBJECTIVE_SETTINGS_FILE, settings)


def find_stage(run: str | Path) -> Path:
    """
    The folder of a run's last stage.

    Args:
        run (`str` or `Path`):
            What a recipe names `output_dir`, the folder of one of its stages, or the `model` in that.

    Raises:
        ValueError: it holds no finished stage with an objective.
    """
    run = Path(run)
    if not run.is_dir():
        raise UserError(f"{run} is no run of `hawaii train`: there is no such folder.")
    results = run / "train_results.json"
    folders = [run, run / MODEL_FOLDER]
    if results.is_file():
        last = list(json.loads(results.read_text(encoding="utf-8"))["stages"])[-1]
        folders = [run / last / MODEL_FOLDER]
    folder = next((folder for folder in folders if (folder / OBJECTIVE_SETTINGS_FILE).is_file()), None)
    if folder is None or not (folder / OBJECTIVE_FILE).is_file():
        raise UserError(
            f"{run} holds no finished stage with its objective ({OBJECTIVE_FILE} and {OBJECTIVE_SETTINGS_FILE}): "
            "name the output_dir of a finished `hawaii train`, or the folder of one of its stages. A published folder "
            "has none."
        )
    return folder


def read_settings(folder: Path) -> SimpleNamespace:
    """What [`save_settings`] wrote, under the names of the training arguments; `teachers` are [`TeacherConfig`]s."""
    settings = SimpleNamespace(**json.loads((folder / OBJECTIVE_SETTINGS_FILE).read_text(encoding="utf-8")))
    settings.teachers = [TeacherConfig(**config) for config in settings.teachers]
    return settings


def load_stage(folder: Path, device: torch.device | str = "cpu") -> FinishedStage:
    """
    Takes a finished stage up again.

    Args:
        folder (`Path`):
            As [`find_stage`] gives it.
        device (`torch.device` or `str`, *optional*, defaults to `"cpu"`):
            Where the teachers and the objective go.

    Raises:
        ValueError: a teacher is no longer where it was, or no longer the same.
    """
    settings = read_settings(folder)
    for config in settings.teachers:
        if Path(config.checkpoint).is_absolute() and not Path(config.checkpoint).is_dir():
            raise UserError(
                f"The teacher {config.name} of {folder} is gone: there is no folder {config.checkpoint}. Bring it "
                f"back, or write into {folder / OBJECTIVE_SETTINGS_FILE} where it is now."
            )
    if holds_encoder(folder):
        student, processor = load_encoder(folder, dtype="auto")
    else:
        student = HawaiiForConditionalGeneration.from_pretrained(folder, dtype="auto")
        processor = HawaiiProcessor.from_pretrained(folder)
    kind = OBJECTIVES[settings.objective]
    teachers = kind.prepare_teachers(load_teachers(settings.teachers, device))
    objective = kind(settings, student, {teacher.name: teacher.grid for teacher in teachers})
    try:
        load_objective(objective, folder)
    except ValueError as error:
        raise UserError(f"The teachers of {folder} are not those that it learned from: {error}") from error
    return FinishedStage(folder, student.eval(), processor, teachers, objective.to(device).eval())
