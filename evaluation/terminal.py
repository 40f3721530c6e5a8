"""A conversation in a terminal, or about lines of a pipe."""

import os
import shlex
import sys
from collections.abc import Generator, Iterable
from contextlib import closing, suppress

from transformers.utils import logging

from ..files.escape import show_controls
from ..files.user_error import UserError, describe_error
from .conversation import Conversation
from .picture import open_picture


PROMPT = ">>> "
GREETING = "Ask a question. /image PATH adds an image to it, /help shows all commands, Ctrl-D ends."
LEAVING = "To end, press Ctrl-C again, or Ctrl-D."
HELP = """
/image PATH   adds an image to the next question: a path or an address; repeat it for several images
/new          starts a new conversation
/help         shows this help
/quit         ends, as Ctrl-D does
Ctrl-C        stops an answer; twice at the prompt, it ends
""".strip()


def parse_path(text: str) -> str:
    """
    Returns the path or address that follows `/image`. A path with spaces may be as it is, in quotes, or with
    backslashes, as a terminal writes it when a file is dropped on it; `~` is the home folder.
    """
    path = os.path.expanduser(text)
    if not os.path.exists(path):
        with suppress(ValueError):  # of an apostrophe in a name
            words = shlex.split(text)
            path = os.path.expanduser(words[0]) if len(words) == 1 else path
    return path


def print_answer(pieces: Generator[str]) -> None:
    """Prints an answer while it is generated, without white space around it."""
    shown = held = ""
    with closing(pieces):
        try:
            for piece in pieces:
                text = held + piece if shown else piece.lstrip()
                visible = text.rstrip()
                shown, held = shown + visible, text[len(visible) :]
                print(show_controls(visible), end="", flush=True)
        except UserError:
            print(end="\n" if shown else "")
            raise
    print(flush=True)


def respond(conversation: Conversation, line: str) -> None:
    """
    Carries out a command or answers a question.

    Raises:
        EOFError: The command is `/quit`.
        UserError: An image could not be opened, there is no such command, or the question cannot be answered.
    """
    command, _, rest = line.strip().partition(" ")
    if command == "/image":
        if not rest.strip():
            raise UserError("There is no path after /image; write it as in /image cat.png.")
        image = open_picture(parse_path(rest.strip()))
        conversation.images.append(image)
        number = f"image {len(conversation.images)} of" if len(conversation.images) > 1 else "the image of"
        print(f"{image.width} x {image.height} pixels, {number} the next question", file=sys.stderr)
    elif command == "/new":
        conversation.forget()
        print("The conversation starts again.", file=sys.stderr)
    elif command == "/help":
        print(HELP)
    elif command == "/quit":
        raise EOFError
    elif command.startswith("/"):
        raise UserError(f"There is no command {command}; /help shows all commands.")
    elif command:
        print_answer(conversation.ask(line.strip()))


def answer_lines(conversation: Conversation, lines: Iterable[str]) -> None:
    """
    Answers one question, or carries out one command, per line.

    Raises:
        UserError: As for [`respond`]; later lines are not read, because they may need what failed.
    """
    with suppress(EOFError):
        for line in lines:
            respond(conversation, line)


def talk_at_terminal(conversation: Conversation) -> None:
    """Reads questions and commands after a prompt until Ctrl-D, `/quit`, or Ctrl-C twice at the prompt."""
    with suppress(ImportError):  # Windows has none
        import readline  # noqa: F401  `input` then has a history and edits lines
    # Into a file, as in `hawaii chat FOLDER | tee LOG`, only answers are written.
    prompts = sys.stdout if sys.stdout.isatty() else sys.stderr
    print(GREETING, file=prompts)
    is_leaving = False
    while True:
        line = None
        try:
            if prompts is sys.stderr:
                print(PROMPT, end="", file=prompts, flush=True)
            line = input(PROMPT if prompts is sys.stdout else "")
            is_leaving = False
            respond(conversation, line)
        except EOFError:
            print(file=prompts)
            return
        except KeyboardInterrupt:
            print(file=prompts if line is None else sys.stdout)
            if is_leaving:
                raise
            if line is None:
                is_leaving = True
                print(LEAVING, file=prompts)
        except Exception as error:  # one that no user can correct is raised again
            message = describe_error(error)
            if message is None:
                raise
            print(show_controls(message), file=sys.stderr)


def talk(conversation: Conversation) -> None:
    """Talks to the user of this process: with a prompt if lines are typed, or else line by line."""
    logging.set_verbosity_error()  # a warning would be printed into an answer
    sys.stdin.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]
    if sys.stdin.isatty():
        talk_at_terminal(conversation)
    else:
        answer_lines(conversation, sys.stdin)
