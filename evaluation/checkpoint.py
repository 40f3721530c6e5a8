"""A published folder, seen from outside: found, checked and measured without loading a weight."""

import json
import re
import struct
from math import prod
from pathlib import Path


INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def checkpoint_folder(name):
    """
    Finds a checkpoint, and says what is wrong before anything slow begins.

    Args:
        name (`str` or `Path`):
            A folder on this machine, or a name on the Hub, which is downloaded.

    Returns:
        `Path`: a folder that holds a configuration and weights.
    """
    folder = Path(name)
    if not folder.exists() and HUB_NAME.fullmatch(str(name)):
        return _download(str(name))
    if not folder.is_dir():
        raise ValueError(f"{name} is not a checkpoint: there is no such folder. {_way_out(folder)}")
    if not (folder / "config.json").is_file():
        raise ValueError(f"{name} is not a checkpoint: it holds no config.json. {_way_out(folder)}")
    if not (folder / WEIGHTS).is_file() and not (folder / INDEX).is_file():
        raise ValueError(f"{name} is not a checkpoint: it holds no {WEIGHTS}. {_way_out(folder)}")
    return folder


def _way_out(folder):
    published = folder / "hub"
    if (published / "config.json").is_file():
        return f"Did you mean {published}?"
    return "Training leaves one in OUTPUT_DIR/hub."


def _download(name):
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name))
    except Exception as error:
        raise ValueError(
            f"{name} is not a checkpoint: there is no such folder, and the Hub gives no model of that name "
            "(misspelled, private, or not reached)."
        ) from error


def count_parameters(folder):
    """The number of weights in a folder's safetensors files, read from their headers; tied weights count once."""
    index = Path(folder) / INDEX
    names = set(json.loads(index.read_text())["weight_map"].values()) if index.is_file() else {WEIGHTS}
    return sum(prod(shape) for name in names for shape in _shapes(Path(folder) / name))


def _shapes(path):
    # The format: eight bytes of length, little endian, then that much JSON, then the weights.
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    return [tensor["shape"] for name, tensor in header.items() if name != "__metadata__"]
