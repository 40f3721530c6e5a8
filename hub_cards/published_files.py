"""The files of a published folder. All other files are left out of an export and an upload."""

import os
import re
from pathlib import Path

from ..configuration.hub_hawaii import read_code
from ..files.custom_code import find_unknown_code
from ..files.model_folder import INDEX, WEIGHTS
from ..files.run_contents import CURVES_FILE, RECIPE_FILE
from ..files.user_error import UserError
from ..modeling_hawaii.conversion.checkpoint_tensors import find_weight_files
from ..modeling_hawaii.conversion.saved_model import check_saved_model, check_weights_are_finite


# Files that transformers reads, besides weights and code.
SETTINGS = (
    "config.json",
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "chat_template.jinja",
    "tokenizer_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
# Tokens of the Hub and of GitHub, and keys of other services, that users paste into files by mistake. A name may have
# one of the prefixes within a word.
TOKEN = re.compile(
    r"(?<![A-Za-z0-9])(hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{36,}|sk-[A-Za-z0-9_-]{40,}|AKIA[0-9A-Z]{16})"
    r"(?![A-Za-z0-9])"
)
LOGIN = re.compile(r"""\w://[^\s/@:"',<>]*:[^\s/@"',<>]+@\w""")  # of an address
# Files whose words are not those of the author.
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt")


def check_secrets(folder: Path, names: list[str]) -> None:
    """Raises a `UserError` if one of these text files contains a token, a password or the path of the home folder."""
    home = re.compile(rf"(?<![\w/.]){re.escape(str(Path.home()))}/")
    for name in names:
        if name.endswith(".safetensors") or name in VOCABULARIES:
            continue
        text = (folder / name).read_text(encoding="utf-8", errors="replace")
        if TOKEN.search(text):
            raise UserError(f"{folder / name} contains an access token, which everybody could use: remove it.")
        for pattern, problem in (
            (LOGIN, "has an address with a password: remove the login"),
            (home, "names a file of your home folder: remove its path"),
        ):
            if found := pattern.search(text):
                line = text.count("\n", 0, found.start()) + 1
                raise UserError(f"{folder / name}, line {line}, {problem}.")


def check_links(folder: Path) -> None:
    """Raises a `UserError` if a link anywhere in a folder leads out of it or nowhere."""
    inside = folder.resolve()
    for parent, folders, files in os.walk(folder):
        for path in (Path(parent, name) for name in [*folders, *files]):
            if path.is_symlink() and not (path.exists() and path.resolve().is_relative_to(inside)):
                raise UserError(
                    f"{path} is a link to {os.readlink(path)}, which leads out of {folder} or nowhere. "
                    "Replace the link by a copy, or remove it."
                )


def check_model(folder: Path) -> None:
    """
    Checks that a folder contains a complete model, nothing else in its weights, and no link that leads out.

    Raises:
        UserError: it does not, or a weight is not finite.
    """
    check_links(folder)
    if unknown := check_saved_model(folder):
        raise UserError(
            f"The weights of {folder} contain {len(unknown)} tensors that the model of its config.json does not have, "
            f"{unknown[0]} for one. Save the model again."
        )
    check_weights_are_finite(folder)


def find_published(folder: Path) -> list[str]:
    """Names of the files in a folder that belong to a published folder, besides code, card and facts."""
    names = [*SETTINGS, *(path.name for path in find_weight_files(str(folder)))]
    if not (folder / WEIGHTS).is_file():
        names.append(INDEX)
    return [name for name in names if (folder / name).is_file()]


def find_attached(folder: Path) -> list[str]:
    """Names of the files in a folder that its card shows or links."""
    return [name for name in (RECIPE_FILE, CURVES_FILE) if (folder / name).is_file()]


def check_code(folder: Path) -> None:
    """
    Checks that a folder's code is this package's and that its Auto classes load this code.

    Raises:
        UserError: a file is missing or differs, or a configuration names other code.
    """
    code = read_code()
    for name, source in code.items():
        path = folder / name
        if not path.is_file() or path.read_text(encoding="utf-8", errors="replace") != source:
            raise UserError(
                f"{path} is {'changed' if path.is_file() else 'missing'}: it is not the code of the installed "
                "hawaii-vlm. Run `hawaii train` again, which writes the installed code into the folder."
            )
    for name in (name for name in SETTINGS if name.endswith("config.json") and (folder / name).is_file()):
        for reference in find_unknown_code(folder / name, code):
            if reference == "custom_pipelines":
                raise UserError(
                    f"{folder / name} names custom_pipelines, whose code users would run: remove the field."
                )
            raise UserError(
                f"{folder / name} names code that is not this package's, {reference}: users of the model would "
                "run it. Run `hawaii train` again, which writes the folder anew from the finished stages."
            )
