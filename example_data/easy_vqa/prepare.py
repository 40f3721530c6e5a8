"""`hawaii data easy_vqa`: images, conversations, test questions, experts and a pretrained language model."""

import random
import shutil
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from PIL import Image

from ...files.atomic import atomic_folder, write_text
from ...files.user_error import explain_errors
from ..experts import check_steps, held_out, prepare_experts
from ..language_model import prepare_language_model
from ..llava_rows import make_caption_row, make_question_row, make_rows, write_rows
from ..question_table import write_questions
from ..word_tokenizer import build_tokenizer
from .experts import EXPERTS, labellings
from .questions import Description, Question, describe


# How often a yes/no question is repeated that names the color of the image. Seven of eight name another color, so that
# a model would learn for long to say no without looking at the image.
SHOWN_COLOR_REPEATS = 3
READING_STEPS = 700
# easy-VQA has the MIT license, and these models learn from nothing else.
MODEL_CARD = """
---
license: mit
---

Trained from random weights by `hawaii data easy_vqa` on easy-VQA (https://github.com/vzhou842/easy-VQA).
""".lstrip()
SEED = 0


def import_easy_vqa() -> ModuleType:
    """Returns the package that contains the images and questions."""
    with explain_errors(
        "easy-VQA's images and questions are in the package easy-vqa. Install it with `pip install easy-vqa==1.0`",
        ImportError,
    ):
        import easy_vqa
    return easy_vqa


def read_questions(columns: tuple[list[str], list[str], list[int]]) -> list[Question]:
    """Returns the questions of one split from the package's columns of texts, answers and image ids."""
    return [Question(*row) for row in zip(*columns, strict=True)]


def group_by_image(questions: Iterable[Question]) -> dict[int, list[Question]]:
    """Returns the questions about each image in their order."""
    grouped = defaultdict(list)
    for question in questions:
        grouped[question.image_id].append(question)
    return dict(grouped)


def read_images(paths: Sequence[str]) -> torch.Tensor:
    """Decodes images of one size into a `torch.ByteTensor` of shape `(num_images, height, width, 3)`."""
    return torch.from_numpy(np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths]))


def image_names(image_id: int) -> tuple[str, str]:
    """Returns the file names of a training image and its mirrored copy, which has the same shape and color."""
    return f"{image_id}.png", f"{image_id}_horizontal.png"


def caption_rows(descriptions: dict[int, Description]) -> list[dict]:
    """Makes a row for every image and mirrored image with a known shape and color."""
    return [
        make_caption_row(f"train/{name}", description.caption)
        for image_id, description in descriptions.items()
        if description.caption is not None
        for name in image_names(image_id)
    ]


def names_shown_color(question: Question) -> bool:
    """Returns whether a yes/no question names the color that the image shows."""
    return question.type == "yes/no color" and question.is_true


def conversation_rows(questions: Iterable[Question]) -> list[dict]:
    """
    Makes rows with all questions about every image and mirrored image in random order. Questions with
    [`names_shown_color`] are repeated `SHOWN_COLOR_REPEATS` times. The same questions give the same rows.
    """
    generator = random.Random(SEED)
    rows = []
    for image_id, image_questions in group_by_image(questions).items():
        for name in image_names(image_id):
            generator.shuffle(image_questions)
            turns = [
                (question.text, question.answer)
                for question in image_questions
                for _ in range(SHOWN_COLOR_REPEATS if names_shown_color(question) else 1)
            ]
            rows += make_rows(f"train/{name}", turns)
    return rows


def validation_rows(questions: Iterable[Question]) -> list[dict]:
    """Makes one row per question, with its type, about the image that is not mirrored."""
    return [
        make_question_row(f"train/{image_names(image_id)[0]}", number, question)
        for image_id, image_questions in group_by_image(questions).items()
        for number, question in enumerate(image_questions)
    ]


def write_train_images(image_ids, paths, images, folder: Path) -> None:
    """Copies the training images and writes their mirrored copies, unless the folder is complete."""
    names = {name for image_id in image_ids for name in image_names(image_id)}
    if folder.is_dir() and names == {path.name for path in folder.iterdir()}:
        return
    with atomic_folder(folder) as temporary:
        for image_id, path, image in zip(image_ids, paths, images, strict=True):
            original, mirrored = image_names(image_id)
            shutil.copyfile(path, temporary / original)
            Image.fromarray(image.flip(1).numpy()).save(temporary / mirrored)  # (height, width, 3)


def write_test_split(package: ModuleType, data: Path) -> int:
    """Writes the test images and `test.parquet`, the only use of the test split. Returns the number of questions."""
    questions, paths = read_questions(package.get_test_questions()), package.get_test_image_paths()
    if not (data / "images" / "test").is_dir():
        with atomic_folder(data / "images" / "test") as temporary:
            for image_id, path in paths.items():
                shutil.copyfile(path, temporary / f"{image_id}.png")
    encoded = {str(image_id): Path(path).read_bytes() for image_id, path in paths.items()}
    write_questions([(str(question.image_id), question) for question in questions], encoded, data / "test.parquet")
    return len(questions)


def write_model_card(folder: Path) -> None:
    """Writes a `README.md` if there is none: cards of models that are made from this one find its license there."""
    if not (folder / "README.md").exists():
        write_text(folder / "README.md", MODEL_CARD)


def prepare_easy_vqa(output_dir: str | Path, expert_steps: int | None = None) -> None:
    """
    Makes everything that the built-in recipe needs for training and evaluation. A second run makes only missing or
    outdated parts; a kill at any moment leaves no incomplete file or folder under a final name.

    The images that the experts hold out are in no training file; `data/validation.json` has their questions.

    Args:
        output_dir (`str` or `Path`):
            Folder for `data/`, `experts/` and `language_model/`.
        expert_steps (`int`, *optional*):
            Number of training steps of each expert and of the language model. Each has its own by default.

    Raises:
        UserError: the package easy-vqa is not installed, or `expert_steps` is less than 1.
    """
    check_steps(expert_steps)
    package, output_dir = import_easy_vqa(), Path(output_dir)
    data = output_dir / "data"

    questions, paths = read_questions(package.get_train_questions()), package.get_train_image_paths()
    descriptions = {image_id: describe(asked) for image_id, asked in sorted(group_by_image(questions).items())}
    image_paths = [paths[image_id] for image_id in descriptions]
    images = read_images(image_paths)
    validation_ids = {image_id for image_id, is_out in zip(descriptions, held_out(len(descriptions))) if is_out}

    write_train_images(descriptions, image_paths, images, data / "images" / "train")
    captions = caption_rows({key: value for key, value in descriptions.items() if key not in validation_ids})
    conversations = conversation_rows(question for question in questions if question.image_id not in validation_ids)
    validation = validation_rows(question for question in questions if question.image_id in validation_ids)
    for name, rows in {"pretrain": captions, "finetune": conversations, "validation": validation}.items():
        write_rows(rows, data / f"{name}.json")
    num_test = write_test_split(package, data)
    print(
        f"easy-VQA: {(len(images) - len(validation_ids)) * 2:,} training images with {len(captions):,} captions and "
        f"{len(conversations):,} conversations, {len(validation):,} questions about {len(validation_ids):,} held-out "
        f"images and {num_test:,} test questions in {data}."
    )

    prepare_experts(EXPERTS, images, labellings(list(descriptions.values())), output_dir / "experts", expert_steps)
    tokenizer = build_tokenizer(text for question in questions for text in (question.text, question.answer))
    reading_steps = READING_STEPS if expert_steps is None else expert_steps
    language_model = output_dir / "language_model"
    prepare_language_model(conversations, captions, tokenizer, language_model, reading_steps)
    for folder in [*(output_dir / "experts" / expert.name for expert in EXPERTS), language_model]:
        write_model_card(folder)
