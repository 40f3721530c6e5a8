"""Tests of a single question."""

import os
import shutil

import pytest
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from hawaii.__main__ import main
from hawaii.evaluation import conversation
from hawaii.evaluation.chat import chat
from hawaii.tests.tiny.models import save_tiled_folder


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "red.png"
    Image.new("RGB", (20, 10), "red").save(path)
    return str(path)


def generate(folder, images):
    """The greedy answer of transformers."""
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
    content = [{"type": "image", "image": Image.open(image)} for image in images]
    content.append({"type": "text", "text": "what color is the shape ?"})
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    tokens = model.generate(**inputs, do_sample=False, max_new_tokens=5)[0, inputs["input_ids"].shape[1] :]
    return processor.decode(tokens, skip_special_tokens=True).strip()


def test_the_answer_is_the_greedy_one_without_the_prompt(hub_folder, image):
    assert chat(hub_folder, [image], "what color is the shape ?", max_new_tokens=5) == generate(hub_folder, [image])


def test_the_answer_of_a_model_with_tiles_is_the_greedy_one(tmp_path):
    folder, answers = save_tiled_folder(tmp_path / "hub"), []
    for number, sizes in enumerate([[(150, 9)], [(1, 1), (900, 700)], []]):
        images = [str(tmp_path / f"{number}_{width}.png") for width, _ in sizes]
        for size, path in zip(sizes, images):
            Image.effect_noise(size, 80).convert("RGB").save(path)
        answers.append(chat(str(folder), images, "what color is the shape ?", max_new_tokens=5))
        assert answers[-1] == generate(folder, images)
    assert len(set(answers)) == len(answers)


def test_the_error_names_a_missing_image(hub_folder):
    with pytest.raises(ValueError, match="There is no image nowhere.png"):
        chat(hub_folder, ["nowhere.png"], "what color is the shape ?")


def test_the_error_names_a_missing_checkpoint(image, tmp_path):
    with pytest.raises(ValueError, match="is not a checkpoint"):
        chat(tmp_path, [image], "what color is the shape ?")


def test_the_error_names_a_file_that_is_not_an_image(hub_folder, tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match=r"notes\.txt is no image that Pillow can read"):
        chat(hub_folder, [str(tmp_path / "notes.txt")], "what color is the shape ?")


def test_a_question_that_contains_the_image_token_is_answered_without_it(hub_folder, image):
    expected = chat(str(hub_folder), [image], "what is  ?")
    assert chat(str(hub_folder), [image], "what is <im<image>age> ?") == expected


def test_an_argument_need_not_be_unicode(hub_folder, capsys):
    questions = [os.fsdecode(b"what \xff color ?"), "what ? color ?"]
    answers = [(main(["chat", str(hub_folder), "--question", q]), capsys.readouterr().out) for q in questions]
    assert answers[0] == answers[1]
    assert answers[0][0] == 0


def test_a_conversation_needs_standard_input(hub_folder, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)  # as in `hawaii chat FOLDER <&-`
    assert main(["chat", str(hub_folder)]) == 2
    assert "Standard input is closed" in capsys.readouterr().err


def test_an_empty_name_is_no_checkpoint(capsys, monkeypatch, hub_folder):
    monkeypatch.chdir(hub_folder)  # which an empty path names
    assert main(["chat", "", "--question", "what color ?"]) == 2
    assert capsys.readouterr().err.endswith("hawaii chat: The name of the checkpoint is empty.\n")


def test_an_error_while_loading_a_folder_is_one_sentence(hub_folder, image, tmp_path, capsys):
    folder = shutil.copytree(hub_folder, tmp_path / "hub")
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    assert main(["chat", str(folder), "--image", image, "--question", "what color is the shape ?"]) == 2
    assert f"hawaii chat: {folder} could not be loaded: " in capsys.readouterr().err


def test_the_error_names_a_url_that_does_not_respond(hub_folder):
    with pytest.raises(ValueError, match=r"http://127\.0\.0\.1:9/image\.png could not be downloaded: "):
        chat(hub_folder, ["http://127.0.0.1:9/image.png"], "what color is the shape ?")


def test_a_question_needs_no_image_and_may_have_several(hub_folder, image, tmp_path, capsys):
    Image.new("RGB", (10, 10), "blue").save(tmp_path / "blue.png")
    question, answers = "what color is the shape ?", set()
    for images in ([], [image], [image, str(tmp_path / "blue.png")]):
        words = [word for path in images for word in ("--image", path)]
        assert main(["chat", str(hub_folder), *words, "--question", question, "--max_new_tokens", "5"]) == 0
        printed = capsys.readouterr().out
        assert printed == f"{chat(hub_folder, images, question, max_new_tokens=5)}\n"
        answers.add(printed)
    assert len(answers) == 3


def test_control_characters_of_an_answer_are_shown(hub_folder, monkeypatch):
    monkeypatch.setattr(conversation, "stream_answer", lambda *arguments: (piece for piece in [" \x1b[2", "Jred\n"]))
    assert chat(hub_folder, question="what color ?") == r"\x1b[2Jred"


def test_an_answer_has_at_least_one_token(hub_folder, capsys):
    assert main(["chat", str(hub_folder), "--question", "what ?", "--max_new_tokens", "0"]) == 2
    assert capsys.readouterr().err == "hawaii chat: --max_new_tokens is 0, but must be at least 1.\n"
