"""The tensors of a checkpoint, stored in one file or several, read one at a time."""

import re
from collections import Counter
from collections.abc import Collection, Iterator
from math import prod
from pathlib import Path

import torch
from transformers.safetensors_conversion import auto_conversion
from transformers.utils import cached_file

from ...files.atomic import read_json
from ...files.model_folder import INDEX, PART_FILES, WEIGHTS, describe_part, open_tensors
from ...files.user_error import UserError


# Floating-point types as safetensors names them. Quantized weights have other types.
FLOAT_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# Parts of a model that are saved alone, and the names of their tensors.
PART_TENSORS = {
    "only a projector": re.compile(r"(^|\.)(mm_|multi_modal_)projector\."),
    "only adapters, such as a LoRA": re.compile(r"lora_|^base_model\."),
}


def find_file(checkpoint: str | Path, name: str, revision: str = "main") -> Path | None:
    """Path of a file in a folder or, through the cache, in a Hub repository; `None` if it does not exist."""
    if Path(checkpoint).is_dir():
        path = Path(checkpoint) / name
        return path if path.is_file() else None
    try:
        path = cached_file(str(checkpoint), name, revision=revision)
    except OSError:
        return None
    return None if path is None else Path(path)


def find_revision(checkpoint: str) -> str:
    """
    Revision with a checkpoint's safetensors: the main branch or, if that has only pickles, the pull request of the
    Hub's conversion bot.
    """
    if Path(checkpoint).is_dir() or find_file(checkpoint, WEIGHTS) or find_file(checkpoint, INDEX):
        return "main"
    try:
        _, revision, _ = auto_conversion(checkpoint)
    except Exception:  # no such repository, no network or no pull request: in each case there are no safetensors
        return "main"
    return revision


def find_weight_files(checkpoint: str) -> list[Path]:
    """
    Finds the safetensors files of a checkpoint.

    Raises:
        UserError: there are none, perhaps because it is only a part of a model, or the index is damaged or names a
            file that is missing or in another folder.
    """
    revision = find_revision(checkpoint)
    if (path := find_file(checkpoint, WEIGHTS, revision)) is not None:
        return [path]
    index = find_file(checkpoint, INDEX, revision)
    if index is None:
        for name in PART_FILES:
            if find_file(checkpoint, name, revision) is not None:
                raise describe_part(checkpoint, name)
        raise UserError(
            f"{checkpoint} has neither {WEIGHTS} nor {INDEX}. Pickles (pytorch_model.bin) are not read because they "
            "can run code; docs/starting_points.md shows how to convert them to safetensors."
        )
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise UserError(f"{index} is damaged: it has no weight_map. Download it again.")
    files = []
    for name in sorted(set(map(str, weight_map.values()))):
        if Path(name).name != name:
            raise UserError(f"{index} names {name}, which is not in its folder: it is damaged or malicious.")
        files.append(find_file(checkpoint, name, revision))
        if files[-1] is None:
            raise UserError(f"{checkpoint} lacks {name}, which its {INDEX} names. Download it again.")
    return files


class CheckpointTensors:
    """
    Names, shapes and types of a checkpoint's tensors; reads them without a second copy in memory.

    Args:
        checkpoint (`str` or `Path`):
            Folder or Hub id. From a repository only safetensors files are downloaded.

    Raises:
        UserError: there are no safetensors files, one is missing or damaged, two contain the same tensor, or all
            tensors belong to a projector or to adapters.
    """

    def __init__(self, checkpoint: str | Path):
        self.checkpoint = str(checkpoint)
        self.files = find_weight_files(self.checkpoint)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}  # safetensors' names
        self._names: dict[Path, list[str]] = {}
        for path in self.files:
            with open_tensors(path) as file:
                self._names[path] = list(file.keys())
                for name in self._names[path]:
                    if name in self.shapes:
                        raise UserError(
                            f"{self.checkpoint} contains {name} twice, the second time in {path.name}: files of two "
                            "checkpoints are mixed. Download it again into an empty folder."
                        )
                    tensor = file.get_slice(name)
                    self.shapes[name] = tuple(tensor.get_shape())
                    self.dtypes[name] = tensor.get_dtype()
        for part, pattern in PART_TENSORS.items():
            if self.shapes and all(map(pattern.search, self.shapes)):
                raise UserError(
                    f"{self.checkpoint} contains {part} and no other weights: name the folder of the complete model."
                )

    @property
    def names(self) -> list[str]:
        """Names of all tensors, file by file."""
        return list(self.shapes)

    def main_dtype(self, names: Collection[str]) -> torch.dtype:
        """Floating-point type of most values in the tensors `names`."""
        counts = Counter({torch.float32: 0})
        for name in names:
            if self.dtypes[name] in FLOAT_DTYPES:
                counts[FLOAT_DTYPES[self.dtypes[name]]] += prod(self.shapes[name])
        return counts.most_common(1)[0][0]

    @property
    def largest_file(self) -> int:
        """Size of the largest file, in bytes."""
        return max(path.stat().st_size for path in self.files)

    def read(self, names: Collection[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """
        Yields the tensors `names` with their names, file by file. Each is a view of its file, which is closed before
        the next one is opened: copy what must outlive the iteration.
        """
        for path in self.files:
            with open_tensors(path) as file:
                for name in self._names[path]:
                    if name in names:
                        yield name, file.get_tensor(name)
