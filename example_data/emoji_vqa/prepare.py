"""`hawaii data emoji_vqa`: canvases of real drawings, questions, experts and a pretrained language model."""

import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from random import Random

import numpy as np
import torch

from ...files.atomic import atomic_folder, write_json
from ..experts import check_steps, prepare_experts
from ..language_model import prepare_language_model
from ..llava_rows import make_caption_row, make_question_row, make_rows, write_rows
from ..question_table import write_questions
from ..word_tokenizer import build_tokenizer
from .canvases import Canvas, Painter, lay_out
from .card import write_data_card
from .concepts import Concept, filter_concepts, read_concepts
from .drawings import choose_concepts, import_resvg, read_code_points, read_drawings
from .experts import EXPERTS, labellings
from .packages import NAMES, TEST_VENDOR, TRAIN_VENDORS, VENDORS, fetch
from .questions import Question, Questioner, balance_answers


NUM_CONCEPTS_PER_GROUP = 24
MAX_LETTERS = 5  # of a concept's name that is written on canvases
NUM_CANVASES = {"train": 8000, "validation": 300, "test": 1000, "experts": 10_000}
READING_STEPS = 1500

CanvasQuestions = list[tuple[str, Question]]  # each with the name of its canvas


def written_words(concepts: Sequence[Concept]) -> list[str]:
    """Returns the words to write on canvases: the concepts' names that are one short word."""
    return [concept.name for concept in concepts if concept.name.isalpha() and len(concept.name) <= MAX_LETTERS]


def lay_out_split(split: str, vendors: Iterable[str], concepts: Sequence[Concept]) -> dict[str, Canvas]:
    """Lays out a split with equally many canvases of each vendor, by name. The same call gives the same canvases."""
    vendors, names, words = list(vendors), [concept.name for concept in concepts], written_words(concepts)
    canvases = {}
    for number in range(NUM_CANVASES[split]):
        vendor = vendors[number % len(vendors)]
        canvases[f"{vendor}-{number}"] = lay_out(Random(f"{split} {number}"), vendor, names, words)
    return canvases


def ask_about(split: str, canvases: dict[str, Canvas], questioner: Questioner) -> CanvasQuestions:
    """Returns questions with balanced answers about a split's canvases. The same call gives the same questions."""
    questions = [
        (name, question)
        for name, canvas in canvases.items()
        for question in questioner.ask(Random(f"questions, {split} {name}"), canvas)
    ]
    return balance_answers(questions, Random(f"evened out, {split}"))


def conversation_rows(questions: CanvasQuestions) -> list[dict]:
    """Makes rows with all questions about each training canvas in random order."""
    turns: dict[str, list[tuple[str, str]]] = {}
    for name, question in questions:
        turns.setdefault(name, []).append((question.text, question.answer))
    rows = []
    for name, pairs in turns.items():
        Random(f"conversations {name}").shuffle(pairs)
        rows += make_rows(f"train/{name}.png", pairs)
    return rows


def write_canvases(canvases: dict[str, Canvas], painter: Painter, folder: Path) -> dict[str, bytes]:
    """Paints canvases into a folder and returns the PNG file of each by name."""
    encoded = {}
    with atomic_folder(folder) as temporary:
        for name, canvas in canvases.items():
            file = io.BytesIO()
            painter.paint(canvas).save(file, "PNG")
            encoded[name] = file.getvalue()
            (temporary / f"{name}.png").write_bytes(encoded[name])
    return encoded


def make_painter(vendors: Iterable[str], archives: dict[str, Path], concepts: Sequence[Concept]) -> Painter:
    """Returns a painter with the drawings of `vendors` and no others."""
    names = [concept.name for concept in concepts]
    return Painter({vendor: dict(zip(names, read_drawings(archives[vendor], concepts))) for vendor in vendors})


def paint_for_experts(painter: Painter, concepts: Sequence[Concept]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Returns the experts' images, as bytes `(num_images, height, width, 3)`, and the labels of their patches."""
    canvases = list(lay_out_split("experts", TRAIN_VENDORS, concepts).values())
    images = torch.from_numpy(np.stack([np.asarray(painter.paint(canvas)) for canvas in canvases]))
    return images, labellings(canvases, concepts)


def write_test_split(archives: dict[str, Path], concepts: Sequence[Concept], data: Path) -> list[Question]:
    """
    Writes the test images and `test.parquet` and returns the questions. Nothing else reads the drawings of the test's
    vendor.
    """
    canvases = lay_out_split("test", [TEST_VENDOR], concepts)
    images = write_canvases(canvases, make_painter([TEST_VENDOR], archives, concepts), data / "images" / "test")
    questions = ask_about("test", canvases, Questioner(concepts))
    write_questions(questions, images, data / "test.parquet")
    return [question for _, question in questions]


def prepare_emoji_vqa(output_dir: str | Path, expert_steps: int | None = None) -> None:
    """
    Makes everything that the recipe `emoji_vqa` needs for training and evaluation. A second run downloads and trains
    only what is missing and makes the rest again, byte for byte; a kill at any moment leaves no incomplete file or
    folder under a final name.

    Args:
        output_dir (`str` or `Path`):
            Folder for `packages/`, `data/`, `experts/`, `language_model/` and the data card, `README.md`.
        expert_steps (`int`, *optional*):
            Number of training steps of each expert and of the language model. Each has its own by default.

    Raises:
        UserError: resvg-py is not installed, a package could not be downloaded, or `expert_steps` is less than 1.
    """
    check_steps(expert_steps)
    import_resvg()
    output_dir = Path(output_dir)
    data = output_dir / "data"
    archives = {vendor: fetch(package, output_dir / "packages") for vendor, package in VENDORS.items()}
    names = fetch(NAMES, output_dir / "packages")

    filtered = filter_concepts(read_concepts(names), [read_code_points(archive) for archive in archives.values()])
    *_, concepts = filtered.values()
    drawings = [read_drawings(archives[vendor], concepts) for vendor in TRAIN_VENDORS]
    concepts = choose_concepts(concepts, drawings, NUM_CONCEPTS_PER_GROUP)
    words = written_words(concepts)
    write_json(data / "concepts.json", {"concepts": [asdict(concept) for concept in concepts], "words": words})
    print(f"Emoji: {', '.join(f'{len(left):,} each {rule}' for rule, left in filtered.items())}.")
    print(f"Chosen: the {len(concepts)} that vendors draw most alike, evenly by group; {len(words)} written words.")

    questioner, painter = Questioner(concepts), make_painter(TRAIN_VENDORS, archives, concepts)
    canvases = {split: lay_out_split(split, TRAIN_VENDORS, concepts) for split in ("train", "validation")}
    questions = {split: ask_about(split, canvases[split], questioner) for split in canvases}
    for split in canvases:
        write_canvases(canvases[split], painter, data / "images" / split)
    captions = {name: questioner.caption(canvas) for name, canvas in canvases["train"].items()}
    pretrain = [make_caption_row(f"train/{name}.png", caption) for name, caption in captions.items()]
    finetune = conversation_rows(questions["train"])
    validation = [
        make_question_row(f"validation/{name}.png", number, question)
        for number, (name, question) in enumerate(questions["validation"])
    ]
    for name, rows in {"pretrain": pretrain, "finetune": finetune, "validation": validation}.items():
        write_rows(rows, data / f"{name}.json")
    test = write_test_split(archives, concepts, data)
    write_data_card(output_dir, archives, filtered, concepts, test)
    print(
        f"EmojiVQA: {len(pretrain):,} training images with captions and {len(finetune):,} conversations, "
        f"{len(validation):,} validation questions and {len(test):,} test questions about the drawings of "
        f"{TEST_VENDOR} in {data}."
    )

    prepare_experts(EXPERTS, *paint_for_experts(painter, concepts), output_dir / "experts", expert_steps)
    texts = [text for _, question in questions["train"] for text in (question.text, question.answer)]
    tokenizer = build_tokenizer([*texts, *captions.values(), *(concept.name for concept in concepts)])
    reading_steps = READING_STEPS if expert_steps is None else expert_steps
    prepare_language_model(finetune, pretrain, tokenizer, output_dir / "language_model", reading_steps)
