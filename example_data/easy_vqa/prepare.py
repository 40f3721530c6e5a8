"""`hawaii data easy_vqa`: images, conversations, test questions, experts, a language model that reads."""

import random
import shutil
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from PIL import Image

from ...files.atomic import atomic_folder
from ...files.user_error import UserError
from ..experts import check_steps, held_out, prepare_experts
from ..language_model import prepare_language_model
from ..llava_rows import make_question_row, make_row, make_rows, write_rows
from ..question_table import write_questions
from ..word_tokenizer import build_tokenizer
from .experts import EXPERTS, labellings
from .questions import Description, Question, describe


# The form of the training data.
TURNS_PER_ROW = 2  # Few, so that the answers before a question seldom give its own away.
# How often a yes/no question is asked that names the shape's own colour. Seven in eight name another one, so that for
# long it pays to say so without looking.
OWN_COLOR_REPEATS = 3
READING_STEPS = 700
SEED = 0


def import_easy_vqa() -> ModuleType:
    """The package that ships the images and questions."""
    try:
        import easy_vqa
    except ModuleNotFoundError:
        raise UserError(
            "easy-VQA's images and questions are in the package easy-vqa, which is not installed; get it with "
            "`pip install easy-vqa==1.0`."
        ) from None
    return easy_vqa


def read_questions(columns: tuple[list[str], list[str], list[int]]) -> list[Question]:
    """The questions of one split, from the texts, answers and image ids that the package gives."""
    return [Question(*row) for row in zip(*columns, strict=True)]


def by_image(questions: Iterable[Question]) -> dict[int, list[Question]]:
    """The questions of each image, in their order."""
    grouped = defaultdict(list)
    for question in questions:
        grouped[question.image_id].append(question)
    return dict(grouped)


def read_images(paths: Sequence[str]) -> torch.Tensor:
    """Decodes images of one size: a `torch.ByteTensor` of shape `(num_images, height, width, 3)`."""
    return torch.from_numpy(np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths]))


def image_names(image_id: int) -> tuple[str, str]:
    """The files of a training image and of its mirrored copy, a further sample: neither shape nor colour changes."""
    return f"{image_id}.png", f"{image_id}_horizontal.png"


def caption_rows(descriptions: dict[int, Description]) -> list[dict]:
    """A row for every image and mirrored image whose shape and colour are known."""
    return [
        make_row(f"train/{name}", 0, [("", description.caption)])
        for image_id, description in descriptions.items()
        if description.caption is not None
        for name in image_names(image_id)
    ]


def is_about_own_color(question: Question) -> bool:
    """Whether a question asks for yes or no and names the colour that the image shows."""
    return question.type == "yes/no color" and question.is_true


def conversation_rows(questions: Iterable[Question]) -> list[dict]:
    """
    Every question about every image and mirrored image, those that [`is_about_own_color`] `OWN_COLOR_REPEATS` times,
    in rows of about equal length of at most `TURNS_PER_ROW` questions about one image in random order. The same
    questions give the same rows.
    """
    generator = random.Random(SEED)
    rows = []
    for image_id, asked in by_image(questions).items():
        asked = list(asked)
        for name in image_names(image_id):
            generator.shuffle(asked)
            turns = [
                (question.text, question.answer)
                for question in asked
                for _ in range(OWN_COLOR_REPEATS if is_about_own_color(question) else 1)
            ]
            rows += make_rows(f"train/{name}", turns, TURNS_PER_ROW)
    return rows


def validation_rows(questions: Iterable[Question]) -> list[dict]:
    """Every question once, in a row of its own that tells its type, about the image as it is."""
    return [
        make_question_row(f"train/{image_names(image_id)[0]}", number, question.text, question.answer, question.type)
        for image_id, asked in by_image(questions).items()
        for number, question in enumerate(asked)
    ]


def write_train_images(image_ids, paths, images, folder: Path) -> None:
    """Copies the training images and writes their mirrored copies, unless they are all there."""
    names = {name for image_id in image_ids for name in image_names(image_id)}
    if folder.is_dir() and names == {path.name for path in folder.iterdir()}:
        return
    with atomic_folder(folder) as temporary:
        for image_id, path, image in zip(image_ids, paths, images, strict=True):
            original, mirrored = image_names(image_id)
            shutil.copyfile(path, temporary / original)
            Image.fromarray(image.flip(1).numpy()).save(temporary / mirrored)  # (height, width, 3)


def write_test_split(package: ModuleType, data: Path) -> int:
    """
    Copies the test images and writes `test.parquet`, for the evaluation alone: nothing else reads the test split.

    Returns:
        `int`: number of questions.
    """
    questions, paths = read_questions(package.get_test_questions()), package.get_test_image_paths()
    if not (data / "images" / "test").is_dir():
        with atomic_folder(data / "images" / "test") as temporary:
            for image_id, path in paths.items():
                shutil.copyfile(path, temporary / f"{image_id}.png")
    rows = [
        {
            "question": question.text,
            "answer": question.answer,
            "question_type": question.type,
            "image_id": str(question.image_id),
        }
        for question in questions
    ]
    encoded = {str(image_id): Path(path).read_bytes() for image_id, path in paths.items()}
    write_questions(rows, encoded, data / "test.parquet")
    return len(rows)


def prepare_easy_vqa(output_dir, expert_steps: int | None = None) -> None:
    """
    Leaves everything that the embedded default trains on and is evaluated with. Run again, it makes what is missing or
    differs from what is asked; killed at any moment, nothing under a final name is half written.

    Nothing learns from the training images that the experts hold out: their questions are `data/validation.json`.

    Args:
        output_dir (`str` or `Path`):
            Gets `data/`, `experts/` and `language_model/`.
        expert_steps (`int`, *optional*):
            Steps of each expert, and of the language model, instead of its own number.

    Raises:
        ValueError: the package easy-vqa is not installed, or no step would be trained.
    """
    check_steps(expert_steps)
    package, output_dir = import_easy_vqa(), Path(output_dir)
    questions, paths = read_questions(package.get_train_questions()), package.get_train_image_paths()
    descriptions = {image_id: describe(asked) for image_id, asked in by_image(questions).items()}
    image_ids = sorted(descriptions)
    images = read_images([paths[image_id] for image_id in image_ids])
    kept_back = {image_id for image_id, is_out in zip(image_ids, held_out(len(image_ids)).tolist()) if is_out}
    pretrain = caption_rows({image_id: item for image_id, item in descriptions.items() if image_id not in kept_back})
    finetune = conversation_rows(question for question in questions if question.image_id not in kept_back)
    validation = validation_rows(question for question in questions if question.image_id in kept_back)

    data = output_dir / "data"
    write_train_images(image_ids, [paths[image_id] for image_id in image_ids], images, data / "images" / "train")
    write_rows(pretrain, data / "pretrain.json")
    write_rows(finetune, data / "finetune.json")
    write_rows(validation, data / "validation.json")
    num_test = write_test_split(package, data)
    print(
        f"easy-VQA: {(len(image_ids) - len(kept_back)) * 2:,} training images with {len(pretrain):,} captions and "
        f"{len(finetune):,} conversations, {len(validation):,} questions about {len(kept_back):,} images held out, "
        f"{num_test:,} test questions, in {data}."
    )

    tokenizer = build_tokenizer(text for question in questions for text in (question.text, question.answer))
    labels = labellings([descriptions[image_id] for image_id in image_ids])
    prepare_experts(EXPERTS, images, labels, output_dir / "experts", expert_steps)
    steps = READING_STEPS if expert_steps is None else expert_steps
    prepare_language_model(finetune, pretrain, tokenizer, output_dir / "language_model", steps)
