"""`hawaii data emoji_vqa`: canvases of real drawings, questions about them, a language model and experts."""

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
from ..llava_rows import make_question_row, make_row, make_rows, write_rows
from ..question_table import write_questions
from ..word_tokenizer import build_tokenizer
from .canvases import Canvas, Painter, lay_out
from .card import write_data_card
from .concepts import Concept, candidates, read_concepts
from .drawings import choose_concepts, import_resvg, read_code_points, read_drawings
from .experts import EXPERTS, labellings
from .packages import NAMES, TEST_VENDOR, TRAIN_VENDORS, VENDORS, fetch
from .questions import Question, Questioner, even_out


NUM_CONCEPTS_PER_GROUP = 24
MAX_LETTERS = 5  # of the words that are written: names of concepts
NUM_CANVASES = {"train": 8000, "validation": 300, "test": 1000, "experts": 10_000}
READING_STEPS = 1500
TURNS_PER_ROW = 2  # Few, so that the answers before a question seldom give its own away.

Asked = list[tuple[str, Question]]  # each with the name of its canvas


def written_words(concepts: Sequence[Concept]) -> list[str]:
    """The words that may stand on a canvas: names of one short word."""
    return [concept.name for concept in concepts if concept.name.isalpha() and len(concept.name) <= MAX_LETTERS]


def lay_out_split(split: str, vendors: Iterable[str], concepts: Sequence[Concept]) -> dict[str, Canvas]:
    """The canvases of a split by name, as many of each vendor. The same call gives the same canvases."""
    vendors, names, words = list(vendors), [concept.name for concept in concepts], written_words(concepts)
    canvases = {}
    for number in range(NUM_CANVASES[split]):
        vendor = vendors[number % len(vendors)]
        canvases[f"{vendor}-{number}"] = lay_out(Random(f"{split} {number}"), vendor, names, words)
    return canvases


def ask_about(split: str, canvases: dict[str, Canvas], questioner: Questioner) -> Asked:
    """The questions about a split's canvases, evened out. The same call gives the same questions."""
    asked = [
        (name, question)
        for name, canvas in canvases.items()
        for question in questioner.ask(Random(f"questions, {split} {name}"), canvas)
    ]
    return even_out(asked, Random(f"evened out, {split}"))


def conversation_rows(asked: Asked) -> list[dict]:
    """Every question about the training canvases, in rows of at most `TURNS_PER_ROW` about one in random order."""
    turns: dict[str, list[tuple[str, str]]] = {}
    for name, question in asked:
        turns.setdefault(name, []).append((question.text, question.answer))
    rows = []
    for name, pairs in turns.items():
        Random(f"conversations {name}").shuffle(pairs)
        rows += make_rows(f"train/{name}.png", pairs, TURNS_PER_ROW)
    return rows


def validation_rows(asked: Asked) -> list[dict]:
    """Every question in a row of its own that tells its type."""
    return [
        make_question_row(f"validation/{name}.png", number, question.text, question.answer, question.type)
        for number, (name, question) in enumerate(asked)
    ]


def write_canvases(canvases: dict[str, Canvas], painter: Painter, folder: Path) -> dict[str, bytes]:
    """
    Paints canvases into a folder.

    Returns:
        `dict[str, bytes]`: each as PNG, by name.
    """
    encoded = {}
    with atomic_folder(folder) as temporary:
        for name, canvas in canvases.items():
            file = io.BytesIO()
            painter.paint(canvas).save(file, "PNG")
            encoded[name] = file.getvalue()
            (temporary / f"{name}.png").write_bytes(encoded[name])
    return encoded


def make_painter(vendors: Iterable[str], archives: dict[str, Path], concepts: Sequence[Concept]) -> Painter:
    """A painter that has the drawings of `vendors` and no others."""
    names = [concept.name for concept in concepts]
    return Painter({vendor: dict(zip(names, read_drawings(archives[vendor], concepts))) for vendor in vendors})


def write_test_split(archives: dict[str, Path], concepts: Sequence[Concept], data: Path) -> list[Question]:
    """
    Writes the test images and `test.parquet`, for the evaluation alone: nothing else reads the drawings of the vendor
    that they are made of.

    Returns:
        `list[Question]`: what is asked.
    """
    canvases = lay_out_split("test", [TEST_VENDOR], concepts)
    images = write_canvases(canvases, make_painter([TEST_VENDOR], archives, concepts), data / "images" / "test")
    asked = ask_about("test", canvases, Questioner(concepts))
    rows = [
        {"question": question.text, "answer": question.answer, "question_type": question.type, "image_id": name}
        for name, question in asked
    ]
    write_questions(rows, images, data / "test.parquet")
    return [question for _, question in asked]


def prepare_emoji_vqa(output_dir, expert_steps: int | None = None) -> None:
    """
    Leaves everything that the recipe `emoji_vqa` trains on and is evaluated with. Run again, it fetches and trains
    only what is missing and makes the rest anew, byte for byte; killed at any moment, nothing under a final name is
    half written.

    Args:
        output_dir (`str` or `Path`):
            Gets `packages/`, `data/`, `experts/`, `language_model/` and the data set's card,
            `README.md`.
        expert_steps (`int`, *optional*):
            Steps of each expert, and of the language model, instead of its own number.

    Raises:
        ValueError: resvg-py is not installed, a package cannot be fetched, or no step would be trained.
    """
    check_steps(expert_steps)
    import_resvg()
    output_dir = Path(output_dir)
    data = output_dir / "data"
    archives = {vendor: fetch(package, output_dir / "packages") for vendor, package in VENDORS.items()}
    names = fetch(NAMES, output_dir / "packages")

    filtered = candidates(read_concepts(names), [read_code_points(archive) for archive in archives.values()])
    *_, concepts = filtered.values()
    drawings = [read_drawings(archives[vendor], concepts) for vendor in TRAIN_VENDORS]
    concepts = choose_concepts(concepts, drawings, NUM_CONCEPTS_PER_GROUP)
    words = written_words(concepts)
    write_json(data / "concepts.json", {"concepts": [asdict(concept) for concept in concepts], "words": words})
    print(f"Emoji: {', '.join(f'{len(left):,} each {rule}' for rule, left in filtered.items())}.")
    print(f"Chosen: the {len(concepts)} that are drawn most alike, as many of each group; {len(words)} written words.")

    questioner, painter = Questioner(concepts), make_painter(TRAIN_VENDORS, archives, concepts)
    asked = {}
    for split in ("train", "validation"):
        canvases = lay_out_split(split, TRAIN_VENDORS, concepts)
        write_canvases(canvases, painter, data / "images" / split)
        asked[split] = ask_about(split, canvases, questioner)
        if split == "train":
            captions = {name: questioner.caption(canvas) for name, canvas in canvases.items()}
    pretrain = [make_row(f"train/{name}.png", 0, [("", caption)]) for name, caption in captions.items()]
    finetune = conversation_rows(asked["train"])
    write_rows(pretrain, data / "pretrain.json")
    write_rows(finetune, data / "finetune.json")
    write_rows(validation_rows(asked["validation"]), data / "validation.json")
    test = write_test_split(archives, concepts, data)
    print(
        f"EmojiVQA: {len(pretrain):,} training images with captions and {len(finetune):,} conversations, "
        f"{len(asked['validation']):,} questions to validate with, {len(test):,} test questions about the drawings of "
        f"{TEST_VENDOR}, in {data}."
    )

    texts = [text for _, question in asked["train"] for text in (question.text, question.answer)]
    tokenizer = build_tokenizer([*texts, *captions.values(), *(concept.name for concept in concepts)])
    write_data_card(output_dir, archives, filtered, concepts, test)

    canvases = list(lay_out_split("experts", TRAIN_VENDORS, concepts).values())
    images = torch.from_numpy(np.stack([np.asarray(painter.paint(canvas)) for canvas in canvases]))
    labels = labellings(canvases, concepts)
    prepare_experts(EXPERTS, images, labels, output_dir / "experts", expert_steps)
    steps = READING_STEPS if expert_steps is None else expert_steps
    prepare_language_model(finetune, pretrain, tokenizer, output_dir / "language_model", steps)
