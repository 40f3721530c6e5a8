"""Conversations in a pseudo-terminal and through a pipe, of the whole command."""

import io
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from hawaii.__main__ import main
from hawaii.evaluation.conversation import Conversation
from hawaii.evaluation.lmms.loading import load_checkpoint
from hawaii.evaluation.terminal import GREETING, LEAVING, PROMPT, parse_path, print_answer
from hawaii.files.user_error import UserError
from hawaii.tests.evaluation.pseudo_terminal import CTRL_C, PseudoTerminal
from hawaii.tests.tiny.models import make_model, make_processor


CTRL_D, CTRL_P = "\x04", "\x10"  # the second recalls the previous line
COMMAND = [sys.executable, "-m", "hawaii", "chat"]


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """A working directory with images."""
    Image.new("RGB", (20, 10), "red").save(tmp_path / "red.png")
    Image.new("RGB", (10, 10), "blue").save(tmp_path / "the boss's blue.png")
    monkeypatch.chdir(tmp_path)


def expected_answers(folder: Path, *turns: str | Path) -> list[str]:
    """The answers to questions; a path is an image of the next one."""
    conversation = Conversation(*load_checkpoint(str(folder)), str(folder), max_new_tokens=8)
    answers = []
    for turn in turns:
        if isinstance(turn, Path):
            conversation.images.append(Image.open(turn).convert("RGB"))
        else:
            answers.append("".join(conversation.ask(turn)).strip())
    return answers


@pytest.mark.slow
def test_a_conversation_at_a_terminal(hub_folder, pictures):
    question, blue = "what color is the shape ?", Path("the boss's blue.png")
    first, second = expected_answers(hub_folder, Path("red.png"), blue, question, question)
    (alone,) = expected_answers(hub_folder, question)
    assert len({first, second, alone}) == 3
    with PseudoTerminal([*COMMAND, str(hub_folder), "--image", "red.png", "--max_new_tokens", "8"]) as terminal:
        terminal.read_until(f"{GREETING}\n{PROMPT}")
        for typed, shown in [
            (f"/image {blue}\n", "10 x 10 pixels, image 2 of the next question\n"),
            ("/image nowhere.png\n", "There is no image nowhere.png.\n"),
            ("/image\n", "There is no path after /image; write it as in /image cat.png.\n"),
            ("/picture red.png\n", "There is no command /picture; /help shows all commands.\n"),
            ("what color  \x7fis the shape ?\n", f"{first}\n"),
            (f"{CTRL_P}\n", f"{second}\n"),
            ("what color " * 150 + "\n", "but the model has 256 positions"),
            ("/new\n", "The conversation starts again.\n"),
            (f"{question}\n", f"{alone}\n"),
            ("\n/help\n", "/new          starts a new conversation\n"),
        ]:
            terminal.type(typed)
            terminal.read_until("\n")  # of the line that was typed
            terminal.read_until(shown)
            terminal.read_until(PROMPT)
        terminal.type(CTRL_D)
        assert terminal.wait() == 0


@pytest.fixture(scope="module")
def endless_folder(tmp_path_factory):
    """A published folder whose answers have no end."""
    folder = tmp_path_factory.mktemp("endless") / "hub"
    torch.manual_seed(0)
    model = make_model(text={"max_position_embeddings": 10**6, "eos_token_id": None})
    model.save_pretrained(folder)
    make_processor().save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_ctrl_c_stops_an_answer_and_twice_at_the_prompt_the_conversation(endless_folder):
    (beginning,) = expected_answers(endless_folder, "what color ?")
    with PseudoTerminal([*COMMAND, str(endless_folder), "--max_new_tokens", "900000"]) as terminal:
        terminal.read_until(PROMPT)
        terminal.type("what color ?\n")
        terminal.read_until("\n")
        assert terminal.read_until(beginning) == ""  # it is shown while more is generated
        terminal.type(CTRL_C)
        terminal.read_until(f"\n{PROMPT}")
        terminal.type("is it")
        terminal.read_until("is it")
        terminal.interrupt_prompt()
        terminal.read_until(f"{LEAVING}\n{PROMPT}")
        terminal.type("/new\n")
        terminal.read_until(PROMPT)
        terminal.type("what color ?\n")  # neither the stopped answer nor the dropped line is left
        terminal.read_until("\n")
        assert terminal.read_until(beginning) == ""
        terminal.type(CTRL_C)
        terminal.read_until(f"\n{PROMPT}")
        terminal.interrupt_prompt()
        terminal.read_until(f"{LEAVING}\n{PROMPT}")
        terminal.interrupt_prompt()
        terminal.read_until("hawaii chat: Interrupted.\n")
        assert terminal.wait() == 130


@pytest.mark.slow
def test_a_pipe_gives_an_answer_per_question_and_nothing_else(hub_folder, pictures):
    question = "what color is the shape ?"
    answers = expected_answers(hub_folder, Path("red.png"), question, question)
    lines = f"/image red.png\n{question}\n\n{question}\n/new\n{question}\n/quit\n{question}\n".encode()
    finished = subprocess.run(
        [*COMMAND, str(hub_folder), "--max_new_tokens", "8"], input=lines, capture_output=True, timeout=600
    )
    answers += expected_answers(hub_folder, question)
    assert (finished.returncode, finished.stdout.decode().splitlines()) == (0, answers), finished.stderr.decode()


@pytest.mark.slow
def test_with_its_output_in_a_file_the_terminal_has_the_prompt_and_the_file_the_answers(hub_folder, tmp_path):
    question = "what color is the shape ?"
    program = f"{shlex.join([*COMMAND, str(hub_folder), '--max_new_tokens', '8'])} > {tmp_path / 'log'}"
    with PseudoTerminal(["sh", "-c", program]) as terminal:
        terminal.read_until(f"{GREETING}\n{PROMPT}")
        terminal.type(f"{question}\n")
        terminal.read_until(PROMPT)
        terminal.type(CTRL_D)
        assert terminal.wait() == 0
    assert (tmp_path / "log").read_text().splitlines() == expected_answers(hub_folder, question)


def pipe(monkeypatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))


def test_a_pipe_ends_at_its_first_error(hub_folder, monkeypatch, capsys):
    pipe(monkeypatch, b"what color ?\n/image nowhere.png\nwhat color ?\n")
    assert main(["chat", str(hub_folder), "--max_new_tokens", "8"]) == 2
    printed = capsys.readouterr()
    assert printed.out.splitlines() == expected_answers(hub_folder, "what color ?")
    assert printed.err.endswith("hawaii chat: There is no image nowhere.png.\n")


def test_a_line_need_not_be_unicode(hub_folder, monkeypatch, capsys):
    pipe(monkeypatch, b"what \xff color ?\n")
    assert main(["chat", str(hub_folder), "--max_new_tokens", "8"]) == 0
    assert capsys.readouterr().out.splitlines() == expected_answers(hub_folder, "what \ufffd color ?")


def test_an_answer_is_printed_without_space_around_it(capsys):
    print_answer(piece for piece in [" ", " red", " ", "\n", "and blue\t", " \n"])
    assert capsys.readouterr().out == "red \nand blue\n"


def test_an_error_comes_after_the_answer_so_far(capsys):
    def pieces():
        yield "red"
        raise UserError("The memory is full.")

    with pytest.raises(UserError, match="The memory is full"):
        print_answer(pieces())
    assert capsys.readouterr().out == "red\n"


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("cat.png", "cat.png"),
        ("my cat.png", "my cat.png"),
        ("it's.png", "it's.png"),
        ("'my cat.png'", "my cat.png"),
        ('"my cat.png"', "my cat.png"),
        (r"my\ cat.png", "my cat.png"),
        ("~/cat.png", "/home/me/cat.png"),
        ("~/my cat.png", "/home/me/my cat.png"),
        ("https://a.b/c.png?d=1&e=%20", "https://a.b/c.png?d=1&e=%20"),
        ("two missing.png", "two missing.png"),
        ("it's missing.png", "it's missing.png"),
    ],
)
def test_a_path_may_have_spaces_quotes_and_a_tilde(text, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    for name in ("cat.png", "my cat.png", "it's.png"):
        (tmp_path / name).touch()
    assert parse_path(text) == path
