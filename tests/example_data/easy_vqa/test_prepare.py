"""The prepared data contains every training question with its answer, and nothing of the test split."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image, ImageDraw
from transformers import AutoTokenizer

from hawaii.example_data.easy_vqa.experts import labellings
from hawaii.example_data.easy_vqa.prepare import (
    caption_rows,
    conversation_rows,
    group_by_image,
    import_easy_vqa,
    names_shown_color,
    prepare_easy_vqa,
    read_questions,
)
from hawaii.example_data.easy_vqa.questions import COLORS, SHAPES, Description, Question, describe
from hawaii.example_data.word_tokenizer import build_tokenizer, save_tokenizer
from hawaii.files.user_error import UserError
from hawaii.hub_cards.licenses import License
from hawaii.hub_cards.origins import find_origin
from hawaii.tests.folders import changed_files, contents


PYTHON_WITH_TRANSFORMERS_4 = Path(__file__).parents[3] / ".venv-transformers4" / "bin" / "python"
CONVERSATION = [
    {
        "role": "user",
        "content": [{"type": "image"}, {"type": "text", "text": "What color is the shape?"}],
    },
    {"role": "assistant", "content": [{"type": "text", "text": "blue"}]},
    {"role": "user", "content": [{"type": "text", "text": "is there a circle?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "no"}]},
]


def make_package(folder: Path, test_answer: str = "red") -> SimpleNamespace:
    """A stand-in for the package easy-vqa with 12 training images of a blue rectangle and 2 test images."""

    def draw(split: str, image_id: int, color: str) -> str:
        path = folder / split / f"{image_id}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.new("RGB", (64, 64), "white")
        ImageDraw.Draw(image).rectangle((5, 5 + image_id, 20, 30), fill=color)
        image.save(path)
        return str(path)

    train = [
        row
        for image_id in range(12)
        for row in (
            ("what color is the shape?", "blue", image_id),
            ("what shape is in the image?", "rectangle", image_id),
            ("is there a circle?", "no", image_id),
        )
    ]
    test = [("what is the color of the shape?", test_answer, 0), ("is a triangle present?", "no", 1)]
    train_paths = {image_id: draw("train", image_id, "blue") for image_id in range(12)}
    test_paths = {image_id: draw("test", image_id, test_answer) for image_id in range(2)}
    return SimpleNamespace(
        get_train_questions=lambda: tuple(map(list, zip(*train, strict=True))),
        get_test_questions=lambda: tuple(map(list, zip(*test, strict=True))),
        get_train_image_paths=lambda: train_paths,
        get_test_image_paths=lambda: test_paths,
    )


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    return make_package(tmp_path_factory.mktemp("package"))


@pytest.fixture(scope="module")
def prepared(package, tmp_path_factory):
    """The folder that the command writes. Tests that change it use a copy."""
    folder = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "easy_vqa", package)
        prepare_easy_vqa(folder, expert_steps=1)
    return folder


@pytest.fixture(scope="module")
def shipped_questions():
    """Training questions of the real package."""
    return read_questions(import_easy_vqa().get_train_questions())


@pytest.mark.parametrize(
    ("asked", "caption"),
    [
        ([("what is the blue shape?", "rectangle")], "blue rectangle"),
        ([("what color is the circle?", "teal")], "teal circle"),
        ([("is there a red shape?", "yes"), ("is no triangle present?", "no")], "red triangle"),
        ([("is there not a red shape?", "no"), ("does the image contain a circle?", "yes")], "red circle"),
        (
            [("what color is the shape?", "gray"), ("is there a circle?", "no"), ("is no triangle present?", "yes")],
            "gray rectangle",
        ),
        ([("what color is the shape?", "gray"), ("is there a circle?", "no")], None),
        ([("is there a blue shape?", "no"), ("what shape is present?", "circle")], None),
    ],
)
def test_the_caption_follows_from_the_questions(asked, caption):
    assert describe(Question(text, answer, 0) for text, answer in asked).caption == caption


@pytest.mark.parametrize(
    ("text", "answer", "question_type"),
    [
        ("what is the blue shape?", "circle", "shape"),
        ("what color is the circle?", "blue", "color"),
        ("does the image not contain a circle?", "no", "yes/no shape"),
        ("is a blue shape present?", "yes", "yes/no color"),
    ],
)
def test_the_type_of_a_question_follows_from_its_words_and_answer(text, answer, question_type):
    assert Question(text, answer, 0).type == question_type


def test_labels_are_unknown_if_a_part_is_unknown():
    labels = labellings([Description("blue", "circle"), Description(None, "triangle"), Description("red", None)])
    assert labels["color"].tolist() == [1, -1, 5]
    assert labels["shape"].tolist() == [0, 2, -1]
    assert labels["color and shape"].tolist() == [3, -1, -1]


def test_rows_have_at_most_two_turns_in_another_order_for_each_image():
    questions = [Question(f"question {number}", str(number), 7) for number in range(5)]
    rows = conversation_rows(questions)
    names = ("7", "7_horizontal")
    assert [row["id"] for row in rows] == [f"{name}-{number}" for name in names for number in range(3)]
    assert [len(row["conversations"]) // 2 for row in rows] == [2, 2, 1] * 2
    assert all(row["conversations"][0]["value"].startswith("<image>\nquestion ") for row in rows)
    orders = [tuple(turn["value"] for row in rows[i : i + 3] for turn in row["conversations"][1::2]) for i in (0, 3)]
    assert [sorted(order) for order in orders] == [list("01234")] * 2 and orders[0] != orders[1]
    assert rows == conversation_rows(questions)


def test_only_yes_no_questions_that_name_the_shown_color_are_repeated():
    shown = [Question("is there a blue shape?", "yes", 7), Question("is there not a blue shape?", "no", 7)]
    others = [
        Question("is there a red shape?", "no", 7),
        Question("is there a circle?", "yes", 7),
        Question("what is the blue shape?", "circle", 7),
    ]
    rows = conversation_rows(shown + others)
    values = [turn["value"].removeprefix("<image>\n") for row in rows for turn in row["conversations"][::2]]
    # Twice each, for the image and its mirrored copy.
    assert Counter(values) == {**{q.text: 2 * 3 for q in shown}, **{q.text: 2 for q in others}}
    for row in rows:  # The answer to a repeated question could be copied.
        asked = [turn["value"].removeprefix("<image>\n") for turn in row["conversations"][::2]]
        assert len(asked) == len(set(asked))


def test_every_training_question_of_the_package_is_in_the_rows_with_its_answer(shipped_questions):
    rows = conversation_rows(shipped_questions)
    asked = Counter()
    for row in rows:
        values = [turn["value"].removeprefix("<image>\n") for turn in row["conversations"]]
        assert [turn["value"].count("<image>") for turn in row["conversations"]] == [1] + [0] * (len(values) - 1)
        name = Path(row["image"]).stem
        asked.update((text, answer, name) for text, answer in zip(values[::2], values[1::2], strict=True))
    expected = Counter()
    for question in shipped_questions:
        for name in (f"{question.image_id}", f"{question.image_id}_horizontal"):
            expected[question.text, question.answer, name] += 3 if names_shown_color(question) else 1
    assert asked == expected
    assert max(len(row["conversations"]) for row in rows) == 4


def test_the_captions_agree_with_every_answer_of_the_package(shipped_questions):
    descriptions = {image_id: describe(asked) for image_id, asked in group_by_image(shipped_questions).items()}
    for question in shipped_questions:
        known = descriptions[question.image_id]
        if question.answer in SHAPES:
            assert known.shape == question.answer
        elif question.answer in COLORS:
            assert known.color == question.answer
        else:
            part, named = (known.shape, SHAPES) if question.type == "yes/no shape" else (known.color, COLORS)
            is_named = part in question.words
            assert part is None or is_named == question.is_true, (question, known, named)
    assert len(caption_rows(descriptions)) > 0.85 * 2 * len(descriptions)


def test_the_answers_of_the_package_are_the_known_words():
    easy_vqa = import_easy_vqa()
    assert set(easy_vqa.get_answers()) == {*SHAPES, *COLORS, "yes", "no"}


def test_rows_are_llava_json_with_existing_images(prepared):
    pretrain = json.loads((prepared / "data" / "pretrain.json").read_text())
    finetune = json.loads((prepared / "data" / "finetune.json").read_text())
    assert pretrain[0] == {
        "id": "0-0",
        "image": "train/0.png",
        "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "blue rectangle"}],
    }
    images = {row["image"] for row in pretrain}
    assert len(pretrain) == len(images) == 22 and images == {row["image"] for row in finetune}  # 11, and mirrored
    for row in pretrain + finetune:
        assert [turn["from"] for turn in row["conversations"]] == ["human", "gpt"] * (len(row["conversations"]) // 2)
        assert (prepared / "data" / "images" / row["image"]).is_file()
    for rows in (pretrain, finetune):
        assert len({row["id"] for row in rows}) == len(rows)


def test_the_images_that_experts_hold_out_are_for_validation(prepared):
    data = prepared / "data"
    validation = json.loads((data / "validation.json").read_text())
    assert validation[1] == {
        "id": "11-1",
        "image": "train/11.png",
        "conversations": [
            {"from": "human", "value": "<image>\nwhat shape is in the image?"},
            {"from": "gpt", "value": "rectangle"},
        ],
        "question_type": "shape",
    }
    assert [row["image"] for row in validation] == ["train/11.png"] * 3
    assert [row["question_type"] for row in validation] == ["color", "shape", "yes/no shape"]
    for name in ("pretrain.json", "finetune.json"):
        images = {row["image"] for row in json.loads((data / name).read_text())}
        assert not images & {"train/11.png", "train/11_horizontal.png"}


def test_missing_and_outdated_files_are_written_again(prepared, package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "easy_vqa", package)
    folder = tmp_path / "run"
    shutil.copytree(prepared, folder)
    expected = contents(folder)
    (folder / "data" / "validation.json").unlink()
    for name in ("pretrain.json", "finetune.json"):
        (folder / "data" / name).write_text("[]")
    prepare_easy_vqa(folder, expert_steps=1)
    assert contents(folder) == expected


def test_the_models_have_the_license_of_the_package(prepared):
    folders = [*(prepared / "experts").iterdir(), prepared / "language_model"]
    assert len(folders) == 4
    assert all(find_origin(str(folder)).license == License("mit") for folder in folders)


def test_mirrored_images_are_mirrored(prepared):
    folder = prepared / "data" / "images" / "train"
    with Image.open(folder / "3.png") as image, Image.open(folder / "3_horizontal.png") as mirrored:
        assert mirrored.tobytes() == image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).tobytes()
        assert mirrored.tobytes() != image.tobytes()


def test_the_test_questions_have_their_images(prepared, package, tmp_path):
    import datasets

    file = str(prepared / "data" / "test.parquet")
    rows = datasets.load_dataset("parquet", data_files={"test": file}, split="test", cache_dir=str(tmp_path))
    assert rows.column_names == ["question_id", "question", "answer", "question_type", "image_id", "image"]
    assert rows[0]["question"] == "what is the color of the shape?" and rows[0]["answer"] == "red"
    assert rows["question_type"] == ["color", "yes/no shape"]
    with Image.open(package.get_test_image_paths()[0]) as image:
        assert rows[0]["image"].tobytes() == image.tobytes()
    assert sorted(path.name for path in (prepared / "data" / "images" / "test").iterdir()) == ["0.png", "1.png"]


def test_nothing_of_the_test_split_reaches_the_training_files(prepared, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "easy_vqa", make_package(tmp_path / "package", test_answer="green"))
    prepare_easy_vqa(tmp_path / "other", expert_steps=1)
    changed = changed_files(prepared, tmp_path / "other")
    assert changed == {"data/images/test/0.png", "data/images/test/1.png", "data/test.parquet"}


def test_a_killed_run_continues(prepared, package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "easy_vqa", package)
    folder = tmp_path / "run"
    shutil.copytree(prepared, folder)
    (folder / "data" / "pretrain.json").unlink()
    (folder / "data" / "images" / "train" / "4.png").unlink()
    shutil.rmtree(folder / "data" / "images" / "test")
    (folder / "data" / "images" / "test.incomplete").mkdir()
    leftover = folder / "data" / f"finetune.json.{'0' * 32}.incomplete"
    leftover.write_text("[{")
    os.utime(leftover, (0, 0))  # more than a day old
    shutil.rmtree(folder / "experts" / "vit")
    kept = folder / "experts" / "resnet" / "expert.json"

    kept_time = kept.stat().st_mtime_ns
    prepare_easy_vqa(folder, expert_steps=1)
    assert not changed_files(prepared, folder)
    assert kept.stat().st_mtime_ns == kept_time


def test_the_error_without_the_package_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "easy_vqa", None)
    with pytest.raises(UserError, match="are in the package easy-vqa. Install it with `pip install easy-vqa==1.0`"):
        prepare_easy_vqa(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_vocabulary_is_the_words_of_the_training_questions(prepared):
    tokenizer = AutoTokenizer.from_pretrained(prepared / "language_model")
    assert tokenizer.convert_ids_to_tokens(range(5)) == ["<pad>", "<unk>", "<s>", "</s>", "<image>"]
    ids = tokenizer("What  color is the SHAPE?blue", return_attention_mask=False)["input_ids"]
    assert tokenizer.decode(ids) == "what color is the shape ? blue"
    assert tokenizer("triangle")["input_ids"] == [tokenizer.unk_token_id]  # only in the test split
    assert tokenizer.model_input_names == ["input_ids", "attention_mask"]


def test_answers_and_their_end_tokens_are_the_labels(prepared):
    tokenizer = AutoTokenizer.from_pretrained(prepared / "language_model")
    text = tokenizer.apply_chat_template(CONVERSATION, tokenize=False)
    assert text == (
        "user: <image>\nWhat color is the shape? assistant: blue</s>user: is there a circle? assistant: no</s>"
    )
    encoded = tokenizer.apply_chat_template(CONVERSATION, return_dict=True, return_assistant_tokens_mask=True)
    tokens = tokenizer.convert_ids_to_tokens(encoded["input_ids"])
    assert [token for token, is_label in zip(tokens, encoded["assistant_masks"], strict=True) if is_label] == [
        "blue",
        "</s>",
        "no",
        "</s>",
    ]


def test_the_prompt_is_the_start_of_the_training_text(prepared):
    tokenizer = AutoTokenizer.from_pretrained(prepared / "language_model")
    prompt = tokenizer.apply_chat_template(CONVERSATION[:1], add_generation_prompt=True, return_dict=True)["input_ids"]
    trained = tokenizer.apply_chat_template(CONVERSATION, return_dict=True)["input_ids"]
    assert trained[: len(prompt)] == prompt
    assert tokenizer.convert_ids_to_tokens(trained[len(prompt)]) == "blue"


def test_transformers_4_loads_the_same_tokenizer(tmp_path):
    tokenizer = build_tokenizer(["what color is the shape?", "blue", "is there a circle?", "no"])
    save_tokenizer(tokenizer, tmp_path)
    script = (
        "import json, sys\n"
        "from transformers import AutoTokenizer\n"
        "tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "options = {'return_dict': True, 'return_assistant_tokens_mask': True}\n"
        "encoded = tokenizer.apply_chat_template(json.loads(sys.argv[2]), **options)\n"
        "ids = encoded['input_ids']\n"
        "print(json.dumps([ids, encoded['assistant_masks'], tokenizer.decode(ids)]))"
    )
    command = [PYTHON_WITH_TRANSFORMERS_4, "-c", script, tmp_path, json.dumps(CONVERSATION)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    encoded = tokenizer.apply_chat_template(CONVERSATION, return_dict=True, return_assistant_tokens_mask=True)
    ids = encoded["input_ids"]
    assert json.loads(output) == [ids, encoded["assistant_masks"], tokenizer.decode(ids)]
