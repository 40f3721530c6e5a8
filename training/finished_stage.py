"""A finished stage, loaded with the teachers and the objective that it was trained with."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from .. import HawaiiProcessor  # from the root, which registers the Auto classes
from ..files.atomic import read_json, write_json
from ..files.run_contents import MODEL_FOLDER, OBJECTIVE_FILE, OBJECTIVE_SETTINGS_FILE, RESULTS_FILE
from ..files.user_error import UserError, explain_errors
from ..modeling_hawaii.conversion.saved_model import check_saved_model
from ..processing.chat_templates.limits import check_rendering
from ..processing.encoder_processor import EncoderProcessor
from .checkpoints import load_objective
from .objectives.encoder_passes import Student
from .objectives.objective import Objective, ObjectiveOptions
from .recipes.objectives import OBJECTIVES
from .students.encoders import holds_encoder, load_encoder
from .students.student import load_student
from .teachers.config import TeacherConfig
from .teachers.loading import load_teachers
from .teachers.teacher import Teacher


@dataclass
class ObjectiveSettings:
    """
    Content of a finished stage's `objective.json`.

    Args:
        objective (`str`):
            Name of the objective.
        options (`ObjectiveOptions`):
            Its options.
        teachers (`list[TeacherConfig]`):
            The teachers, with every field of a preset.
    """

    objective: str
    options: ObjectiveOptions
    teachers: list[TeacherConfig]


@dataclass
class FinishedStage:
    """
    Args:
        folder (`Path`):
            Folder that it was saved in.
        student (`HawaiiForConditionalGeneration` or `HawaiiVisionModel`):
            The trained model, on the CPU.
        processor (`HawaiiProcessor` or `EncoderProcessor`):
            The student's.
        teachers (`list[Teacher]`):
            In the order that the objective expects.
        objective (`Objective`):
            With its final projections.
    """

    folder: Path
    student: Student
    processor: HawaiiProcessor | EncoderProcessor
    teachers: list[Teacher]
    objective: Objective


def save_settings(settings: ObjectiveSettings, folder: Path) -> None:
    """Writes [`ObjectiveSettings`] into the folder of a stage."""
    teachers = [asdict(config) for config in settings.teachers]
    for config in teachers:
        if Path(config["checkpoint"]).is_dir():
            config["checkpoint"] = str(Path(config["checkpoint"]).resolve())  # valid from any working directory
    content = {"objective": settings.objective, **asdict(settings.options), "teachers": teachers}
    write_json(folder / OBJECTIVE_SETTINGS_FILE, content)


def find_stage(run: str | Path) -> Path:
    """
    The model folder of a run's last stage.

    Args:
        run (`str` or `Path`):
            The `output_dir` of a recipe, the folder of one of its stages, or the `model` folder of a stage.

    Raises:
        UserError: the folder contains no finished stage with an objective.
    """
    run = Path(run)
    if not run.is_dir():
        raise UserError(f"{run} is not a run of `hawaii train`: there is no such folder.")
    results = run / RESULTS_FILE
    folders = [run, run / MODEL_FOLDER]
    if results.is_file():
        with explain_errors(f"{results} does not describe a run", (KeyError, TypeError, IndexError)):
            last = list(read_json(results)["stages"])[-1]
        folders = [run / last / MODEL_FOLDER]
    folder = next((folder for folder in folders if (folder / OBJECTIVE_SETTINGS_FILE).is_file()), None)
    if folder is None or not (folder / OBJECTIVE_FILE).is_file():
        raise UserError(
            f"{run} contains no finished stage with its objective ({OBJECTIVE_FILE} and {OBJECTIVE_SETTINGS_FILE}): "
            "name the output_dir of a finished `hawaii train`, or the folder of one of its stages. A published folder "
            "has no objective."
        )
    return folder


def read_settings(folder: Path) -> ObjectiveSettings:
    """
    Reads the file that [`save_settings`] wrote.

    Raises:
        UserError: the content of the file is not valid.
    """
    path = folder / OBJECTIVE_SETTINGS_FILE
    with explain_errors(f"{path} does not describe an objective", (KeyError, TypeError, ValueError)):
        settings = json.loads(path.read_text(encoding="utf-8"))
        options_class = OBJECTIVES[settings["objective"]].options_class
        options = options_class(**{field.name: settings[field.name] for field in fields(options_class)})
        teachers = [TeacherConfig(**config) for config in settings["teachers"]]
    return ObjectiveSettings(settings["objective"], options, teachers)


def load_stage(folder: Path, device: torch.device | str = "cpu") -> FinishedStage:
    """
    Loads a finished stage.

    Args:
        folder (`Path`):
            A folder from [`find_stage`].
        device (`torch.device` or `str`, *optional*, defaults to `"cpu"`):
            Device of the teachers and the objective.

    Raises:
        UserError: a file of the stage is missing or damaged, the folder of a teacher was moved, or a teacher has
            changed.
    """
    settings = read_settings(folder)
    for config in settings.teachers:
        if Path(config.checkpoint).is_absolute() and not Path(config.checkpoint).is_dir():
            raise UserError(
                f"The teacher {config.name} of {folder} is missing: there is no folder {config.checkpoint}. Restore "
                f"it, or write its new path into {folder / OBJECTIVE_SETTINGS_FILE}."
            )
    if holds_encoder(folder):
        check_saved_model(folder)
        student, processor = load_encoder(folder, dtype="auto")
    else:
        student = load_student(folder, dtype="auto")
        processor = HawaiiProcessor.from_pretrained(folder, trust_remote_code=False)
        check_rendering(processor.chat_template, processor.tokenizer.special_tokens_map)
    objective_class = OBJECTIVES[settings.objective]
    teachers = objective_class.prepare_teachers(load_teachers(settings.teachers, device))
    objective = objective_class(settings.options, student, {teacher.name: teacher.grid for teacher in teachers})
    try:
        load_objective(objective, folder)
    except UserError as error:
        raise UserError(f"The teachers of {folder} differ from those that it was trained with: {error}") from error
    return FinishedStage(folder, student.eval(), processor, teachers, objective.to(device).eval())
