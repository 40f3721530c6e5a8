"""Checks for incomplete model folders: damaged files, or only a part of a model such as an adapter."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open

from .atomic import read_json
from .git_lfs import check_is_no_pointer
from .run_contents import TRAINED_FILE
from .user_error import UserError


WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# PEFT's files: if a folder has them, transformers loads the base model that they name instead of the folder's model.
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ADAPTER_FILES = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, "adapter_model.bin")
# Files with only a part of a model, and what they contain.
PART_FILES = {
    **dict.fromkeys(ADAPTER_FILES, "adapters, such as a LoRA"),
    "non_lora_trainables.bin": "the weights that LLaVA trains in addition to a LoRA",
    "mm_projector.bin": "LLaVA's projector",
    TRAINED_FILE: "only the trained weights of a stage with lora or quantization",
}
IMAGE_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
JSON_FILES = ("config.json", "generation_config.json", *IMAGE_PROCESSOR_FILES, *TOKENIZER_FILES, INDEX)


def describe_part(folder: str | Path, file: str) -> UserError:
    """The error for a checkpoint that has `file`, one of [`PART_FILES`], instead of a model."""
    hint = (
        "merge them into their base model with PEFT's merge_and_unload, save the result, and name its folder"
        if file in ADAPTER_FILES
        else "name the folder of the complete model"
    )
    return UserError(f"{folder} is not a complete model: its {file} contains {PART_FILES[file]}; {hint}.")


def check_is_no_part(folder: Path) -> None:
    """Raises a `UserError` if a local folder contains only a part of a model, such as an adapter."""
    has_weights = (folder / WEIGHTS).is_file() or (folder / INDEX).is_file()
    for name in PART_FILES if not has_weights else ADAPTER_FILES:
        if (folder / name).is_file():
            raise describe_part(folder, name)


def check_json_files(folder: Path, names: Sequence[str] = JSON_FILES) -> None:
    """Raises a `UserError` if a local folder has one of these files and it cannot be read."""
    for name in names:
        if (folder / name).is_file():
            read_json(folder / name)


def find_damage(folder: Path, names: Sequence[str]) -> UserError | None:
    """The error of [`check_json_files`], or `None`. It names the file, which a library's error often does not."""
    try:
        check_json_files(folder, names)
    except UserError as error:
        return error
    return None


def check_model_folder(folder: Path) -> None:
    """
    Checks the files of a local folder from which a library is about to load something.

    Raises:
        UserError: one of them is damaged, truncated or a Git LFS pointer, or they are only a part of a model.
    """
    check_is_no_part(folder)
    check_json_files(folder)
    for pattern in ("*.model", "*.txt", "*.jinja"):
        for path in folder.glob(pattern):
            check_is_no_pointer(path)
    names = {WEIGHTS}
    if not (folder / WEIGHTS).is_file() and (folder / INDEX).is_file():
        names = set(read_json(folder / INDEX).get("weight_map", {}).values())
    elif not (folder / WEIGHTS).is_file():
        names = {path.name for path in folder.glob("model*.safetensors")}
    for name in sorted(names):
        if (folder / name).is_file():  # the loader reports a missing file
            with open_tensors(folder / name):
                pass


@contextmanager
def open_tensors(path: Path) -> Iterator:
    """
    Opens a safetensors file and checks that it has the length that its header gives.

    Raises:
        UserError: it is damaged, truncated or a Git LFS pointer.
    """
    check_is_no_pointer(path)
    try:
        opened = safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:  # safetensors' OSError does not name the file
        raise UserError(f"{path} is damaged or truncated: {error}. Download it again.") from error
    with opened as file:
        yield file
