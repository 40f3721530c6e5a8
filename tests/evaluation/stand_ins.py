"""
Small data sets with the columns of the paper's benchmarks on the Hub.

Images have a single colour. The references of the questions are added when a data set is saved.
"""

from collections.abc import Callable
from pathlib import Path

from datasets import Dataset, DatasetDict, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image

from hawaii.evaluation.paper.benchmarks import DATA_SETS


def image(color: str) -> Image.Image:
    """Makes an image that is not square and does not have the size of the model."""
    return Image.new("RGB", (20, 16), color)


def features(strings: str, **others) -> Features:
    """Returns features with string columns, named in one string, and other columns."""
    return Features({name: Value("string") for name in strings.split()} | others)


IMAGE, STRINGS, INTEGER = ImageFeature(), List(Value("string")), Value("int64")
OBJECTS = List({"objectId": Value("string"), "value": Value("string")})
STEPS = List({"operation": Value("string"), "argument": Value("string"), "dependencies": List(Value("int32"))})
TYPES = {"structural": Value("string"), "semantic": Value("string"), "detailed": Value("string")}
FEATURES = {
    "textvqa_val": features(
        "image_id question flickr_original_url flickr_300k_url set_name",
        question_id=Value("int32"),
        question_tokens=STRINGS,
        image=IMAGE,
        image_width=Value("int32"),
        image_height=Value("int32"),
        answers=STRINGS,
        image_classes=STRINGS,
        ocr_tokens=STRINGS,
    ),
    "vizwiz_vqa_val": features("question_id question category", image=IMAGE, answers=STRINGS),
    "gqa": features(
        "id imageId question answer fullAnswer entailed equivalent semanticStr",
        isBalanced=Value("bool"),
        groups={"global": Value("string"), "local": Value("string")},
        types=TYPES,
        annotations={"question": OBJECTS, "answer": OBJECTS, "fullAnswer": OBJECTS},
        semantic=STEPS,
    ),
    "gqa_images": features("id", image=IMAGE),
    "scienceqa_img": features(
        "question hint task grade subject topic category skill lecture solution",
        image=IMAGE,
        choices=STRINGS,
        answer=Value("int8"),
    ),
    "pope": features("id question_id question answer image_source category", image=IMAGE),
    "mme": features("question_id question answer category", image=IMAGE),
    "mmbench_en_dev_static": features(
        "question hint answer A B C D category source L2-category comment split", index=INTEGER, image=IMAGE
    ),
    "mmmu_val": features(
        "id question options explanation img_type answer topic_difficulty question_type subfield",
        **{f"image_{number}": IMAGE for number in range(1, 8)},
    ),
    "ai2d": features("question answer", options=STRINGS, image=IMAGE),
    "seedbench": features(
        "answer choice_a choice_b choice_c choice_d data_id data_type question question_id",
        question_type_id=Value("int16"),
        image=List(ImageFeature()),
        segment=List(INTEGER),
    ),
}


def textvqa(number: int, color: str) -> dict:
    return {
        "question_id": 34602 + number,
        "question": f"what is WRITTEN there, no. {number}?",
        "image": image(color),
        "ocr_tokens": ["DAKOTA", "digital"][:number],
    }


def vizwiz(number: int, color: str) -> dict:
    return {
        "question_id": f"VizWiz_val_{number:08}.jpg",
        "question": "what is this thing?",
        "image": image(color),
        "category": "other",
    }


def gqa(number: int, color: str) -> dict:
    return {"id": f"q{number}", "imageId": color, "question": f"Is the {number} on the left side?"}


def scienceqa(number: int, color: str) -> dict:
    return {
        "question": f"Which of these is it, {number}?",
        "choices": ["chiasmus", "apostrophe", "irony", "hyperbole"],
        "hint": "" if number % 2 else "Read the text.",
        "lecture": "A long one.",
        # Some questions have no image.
        "image": None if color == "none" else image(color),
    }


def pope(number: int, color: str) -> dict:
    return {
        "id": str(number),
        "question_id": str(number),
        "question": f"Is there a dog in the image, {number}?",
        "image": image(color),
        "category": "adversarial",
    }


def mme(number: int, color: str) -> dict:
    # Two questions share an image. The last pair is from the part that Table 1 excludes.
    return {
        "question_id": f"{number // 2:03}.png",
        "question": f"Is there a {number} in this image? Please answer yes or no.",
        "category": ("existence", "existence", "color", "code_reasoning")[number // 2],
        "image": image(color),
    }


def mmbench(number: int, color: str) -> dict:
    # The last question is the first with its options in another order.
    return {
        "index": 1_000_000 if number == 4 else number,
        "question": f"What is in it, {number % 4}?",
        "hint": "A photograph." if number % 4 == 1 else "nan",
        **dict(zip("ABCD", ["a dog", "a cat", "an ox", "nan" if number == 2 else "an owl"])),
        "category": "identity_reasoning",
        "L2-category": "attribute_reasoning",
        "source": "web",
        "comment": "nan",
        "split": "dev",
        "image": image(color),
    }


def mmmu(number: int, color: str) -> dict:
    is_open, has_two = number == 3, number == 1
    return {
        "id": f"validation_{('Art', 'Music', 'Math', 'Physics')[number]}_{number}",
        "question": "Which of <image 1> and <image 2> shows <image 1> best?" if has_two else "<image 1> What is it?",
        "options": "[]" if is_open else "['a fugue', '<image 1>', 'a triad', 'none of these']",
        "question_type": "open" if is_open else "multiple-choice",
        "image_1": image("blue" if has_two else color),
        "image_2": image(color) if has_two else None,
    }


def ai2d(number: int, color: str) -> dict:
    return {"question": f"What is {number}?", "options": ["stem", "leaf", "root", "bud"], "image": image(color)}


def seedbench(number: int, color: str) -> dict:
    is_video = number == 2
    return {
        "question_id": str(101669 + number),
        "question": "How many towels are in the image?",
        **{f"choice_{letter}": count for letter, count in zip("abcd", ("One", "Two", "Three", "Four"))},
        "data_type": "video" if is_video else "image",
        "question_type_id": 10 if is_video else 5,
        "image": [image(color)] * (8 if is_video else 1),
        "segment": [0, 4] if is_video else None,
    }


def answers(answer: str) -> dict:
    return {"answers": [answer] * 10}


def letter(answer: str) -> dict:
    return {"answer": answer}


def index(answer: str) -> dict:
    return {"answer": "ABCD".index(answer)}


# The builder of a question, the colours of the images, and the builder of the reference columns.
BUILDERS: dict[str, tuple[Callable, list[str], Callable]] = {
    "textvqa_val": (textvqa, ["red", "green", "blue", "white", "red"], answers),
    "vizwiz_vqa_val": (vizwiz, ["green", "red", "white", "blue", "green"], answers),
    "gqa": (gqa, ["red", "green", "red", "blue"], letter),
    "scienceqa_img": (scienceqa, ["white", "none", "red", "blue"], index),
    "pope": (pope, ["red", "green", "blue", "white", "red"], letter),
    "mme": (mme, ["red", "red", "green", "green", "blue", "blue", "white", "white"], letter),
    "mmbench_en_dev_static": (mmbench, ["green", "blue", "red", "white", "green"], letter),
    "mmmu_val": (mmmu, ["red", "green", "white", "blue"], letter),
    "ai2d": (ai2d, ["blue", "green", "red", "white"], lambda answer: {"answer": str("ABCD".index(answer))}),
    "seedbench": (seedbench, ["red", "green", "blue", "white", "red"], letter),
}
LETTERS = {"scienceqa_img", "mmbench_en_dev_static", "mmmu_val", "ai2d", "seedbench"}


def questions(task: str) -> list[dict]:
    """Returns the rows of a benchmark without references."""
    build, colors, _ = BUILDERS[task]
    return [build(number, color) for number, color in enumerate(colors)]


def right(task: str, answer: str) -> dict:
    """Returns the reference columns for a right answer."""
    _, _, columns = BUILDERS[task]
    return columns(answer)


def any_answers(task: str) -> list[dict]:
    """Returns arbitrary references for each question."""
    return [right(task, "A" if task in LETTERS else "yes") for _ in questions(task)]


def save_data(folder: Path, name: str, rows: list[dict]) -> None:
    """Saves a data set. Missing columns of a row are empty."""
    rows = [{column: row.get(column) for column in FEATURES[name]} for row in rows]
    data = Dataset.from_list(rows, features=FEATURES[name])
    DatasetDict({DATA_SETS[name][2]: data}).save_to_disk(folder / name)


def save_stand_ins(folder: Path, truth: dict[str, list[dict]]) -> Path:
    """
    Saves all ten benchmarks.

    Args:
        folder (`Path`):
            Empty folder.
        truth (`dict[str, list[dict]]`):
            Reference columns of each question by benchmark.
    """
    for task in BUILDERS:
        rows = [{**row, **columns} for row, columns in zip(questions(task), truth[task], strict=True)]
        save_data(folder, task, rows)
    save_data(folder, "gqa_images", [{"id": color, "image": image(color)} for color in ("red", "green", "blue")])
    return folder
