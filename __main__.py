"""
The command line, `hawaii` or `python -m hawaii`. In the folder `command_line` one function per command declares its
summary, arguments and handler; `COMMANDS` lists them. A handler is a function of this package, imported when the
command runs, so that `--help` answers at once.
"""

import argparse
import io
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module

from .command_line.model_commands import ablate, chat, demo, evaluate, figures, plot, publish
from .command_line.training_commands import DRY_RUN, cache, check, convert, data, recipes, teachers, train
from .files.escape import show_controls
from .files.user_error import Stopped, describe_error


# What a command does if it is started again after Ctrl-C.
CONTINUED = {
    "train": "continues from the last checkpoint",
    "cache": "computes the missing features",
    "ablate": "continues the interrupted runs",
    "publish": "uploads what is missing",
}
COST_OPTIONS = ("devices", "strategy", "gpu", "mfu", "tokens")
COMMANDS = [
    data,
    convert,
    check,
    cache,
    train,
    recipes,
    teachers,
    evaluate,
    ablate,
    figures,
    plot,
    chat,
    demo,
    publish,
]


def build_parser() -> argparse.ArgumentParser:
    """Builds the parser, whose result has the `command`'s name, its `handler`, and the handler's arguments."""
    parser = argparse.ArgumentParser(
        prog="hawaii",
        description="HAWAII: a vision-language model whose one encoder learned from several.",
        epilog="`hawaii COMMAND --help` explains a command. HAWAII_DEBUG=1 shows the traceback of every error.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command(commands)
    return parser


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the arguments. Overrides may be anywhere; argparse alone accepts them only next to RECIPE."""
    parser = build_parser()
    arguments, rest = parser.parse_known_args(argv)
    takes_overrides = arguments.command in ("cache", "check", "train", "ablate")
    if unknown := [word for word in rest if not takes_overrides or "=" not in word or word.startswith("-")]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    costs = [name for name in COST_OPTIONS if hasattr(arguments, name)]
    if arguments.command == "train" and costs and arguments.handler != DRY_RUN:
        parser.error(f"--{costs[0]} needs --dry-run: it describes the GPUs whose costs are counted")
    if rest:
        arguments.overrides = [*getattr(arguments, "overrides", []), *rest]
    return arguments


def fail(command: str, message: str, status: int) -> int:
    # One write, including the line end, because several processes of a run may print at the same time. A message may
    # quote a file of others.
    print(f"hawaii {command}: {show_controls(message)}\n", end="", file=sys.stderr)
    return status


def main(argv: Sequence[str] | None = None) -> int:
    """
    Runs one command.

    Args:
        argv (`Sequence[str]`, *optional*):
            Arguments after `hawaii`; those of the process if not given.

    Returns:
        `int`: the exit status. It is 2, with one sentence on stderr, for an error that the user can correct: a
            [`UserError`], an error of the operating system or a damaged file. It is 75 if a signal stopped a training
            that the same command continues, and 130 after Ctrl-C. With `HAWAII_DEBUG=1` in the environment, the
            traceback is shown instead.

    Raises:
        Exception: any other error. It is a bug of this package or of a library, and needs its traceback.
    """
    options = vars(parse(argv))
    command = options.pop("command")
    handler = options.pop("handler")
    module, _, function = handler.partition(":")
    is_debugged = os.environ.get("HAWAII_DEBUG") == "1"
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as on stderr: not every terminal has every character
    try:
        result = getattr(import_module(f".{module}", __package__), function)(**options)
        if isinstance(result, str):
            print(show_controls(result))
    except Stopped as stopped:
        return fail(command, str(stopped), Stopped.STATUS)
    except KeyboardInterrupt:
        if is_debugged:
            raise
        continues = f": the same command {CONTINUED[command]}" if command in CONTINUED and handler != DRY_RUN else ""
        return fail(command, f"Interrupted{continues}.", 128 + signal.SIGINT)
    except Exception as error:
        message = describe_error(error)
        if message is None or is_debugged:
            raise
        return fail(command, message, 2)
    return 0


if __name__ == "__main__":
    sys.exit(main())
