"""Adds commands and the options that several commands share."""

import argparse


def add_command(commands, name: str, handler: str, summary: str, details: str = "") -> argparse.ArgumentParser:
    """
    Adds a command.

    Args:
        commands:
            Subparsers of `hawaii` or of a group of commands.
        name (`str`):
            Name of the command.
        handler (`str`):
            Function to call, as `module:function`. It gets the given options; text that it returns is printed.
        summary (`str`):
            Line of the command in `hawaii --help`.
        details (`str`, *optional*):
            More sentences for the command's own `--help`.
    """
    parser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}. {details}",
        argument_default=argparse.SUPPRESS,
    )
    parser.set_defaults(handler=handler)
    return parser


def add_group(commands, name: str, metavar: str, summary: str):
    """Adds a command that has commands of its own."""
    parser = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
    return parser.add_subparsers(metavar=metavar, required=True)


def add_questions(parser: argparse.ArgumentParser, default: str) -> None:
    """Adds the options for the data of tasks; `default` describes the default for the built-in data sets."""
    parser.add_argument("--data_file", metavar="PATH", help=f"questions of easy_vqa or emoji_vqa (default: {default})")
    parser.add_argument(
        "--data_folder", metavar="DIR", help="the benchmarks' data, saved by datasets, to evaluate without a network"
    )


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Adds the option to run a checkpoint's own code."""
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run code contained in a checkpoint that is not a HAWAII"
    )
