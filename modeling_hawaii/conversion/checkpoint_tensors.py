"""The tensors of a checkpoint, of one file or many, read one at a time."""

import json
from collections import Counter
from collections.abc import Collection, Iterator
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers.safetensors_conversion import auto_conversion
from transformers.utils import cached_file

from ...files.user_error import UserError


WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# What a safetensors header calls the types that a model's parameters have. Quantized weights have others.
FLOAT_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def find_file(checkpoint: str | Path, name: str, revision: str = "main") -> Path | None:
    """A file of a folder or, by way of the cache, of a repository of the Hub; `None` if it is not to be had."""
    if Path(checkpoint).is_dir():
        path = Path(checkpoint) / name
        return path if path.is_file() else None
    try:
        path = cached_file(str(checkpoint), name, revision=revision)
    except OSError:
        return None
    return None if path is None else Path(path)


def read_json(path: Path) -> dict:
    """
    What a JSON file of a checkpoint holds.

    Raises:
        ValueError: it is no JSON, or not of names and values.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # also of bytes that are no text
        raise UserError(f"{path} is damaged, it is no JSON ({error}); fetch it once more.") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} is damaged, it holds no names and values; fetch it once more.")
    return values


def find_revision(checkpoint: str) -> str:
    """
    Where a checkpoint's safetensors are: on the repository's main branch or, where that has pickles alone, in the pull
    request in which the Hub's own bot offers them.
    """
    if Path(checkpoint).is_dir() or find_file(checkpoint, WEIGHTS) or find_file(checkpoint, INDEX):
        return "main"
    try:
        _, revision, _ = auto_conversion(checkpoint)
    except Exception:  # no such repository, no network, no pull request: whatever it is, there is nothing to read
        return "main"
    return revision


def _open(path: Path):
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is damaged or cut short, no tensor can be read from it ({error}); fetch it once more."
        ) from error


class CheckpointTensors:
    """
    Names, shapes and types of a checkpoint's tensors, and a way to read them that needs no second copy of them.

    Args:
        checkpoint (`str` or `Path`):
            Folder or Hub id. Of a repository's files, only those of safetensors are fetched.

    Raises:
        ValueError: there are no safetensors files, one of them is missing or damaged, or two hold one tensor.
    """

    def __init__(self, checkpoint: str | Path):
        self.checkpoint = str(checkpoint)
        self.files = self._find_files()
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}  # as the files call them
        self._names: dict[Path, list[str]] = {}
        for path in self.files:
            with _open(path) as file:
                self._names[path] = list(file.keys())
                for name in self._names[path]:
                    if name in self.shapes:
                        raise UserError(
                            f"{self.checkpoint} holds {name} twice, the second time in {path.name}: files of two "
                            "checkpoints are mixed. Fetch it once more into an empty folder."
                        )
                    tensor = file.get_slice(name)
                    self.shapes[name] = tuple(tensor.get_shape())
                    self.dtypes[name] = tensor.get_dtype()

    def _find_files(self) -> list[Path]:
        revision = find_revision(self.checkpoint)
        if (path := find_file(self.checkpoint, WEIGHTS, revision)) is not None:
            return [path]
        index = find_file(self.checkpoint, INDEX, revision)
        if index is None:
            raise UserError(
                f"{self.checkpoint} has neither {WEIGHTS} nor {INDEX}. Pickles (pytorch_model.bin) are not read, for "
                "they can run code; docs/starting_points.md shows how to write them as safetensors."
            )
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise UserError(f"{index} is damaged, it has no weight_map; fetch it once more.")
        files = []
        for name in sorted(set(map(str, weight_map.values()))):
            if Path(name).name != name:
                raise UserError(f"{index} names {name}, which does not lie beside it: it is damaged, or made to harm.")
            files.append(find_file(self.checkpoint, name, revision))
            if files[-1] is None:
                raise UserError(f"{self.checkpoint} lacks {name}, which its {INDEX} names; fetch it once more.")
        return files

    @property
    def names(self) -> list[str]:
        """Every tensor's name, in the order of the files."""
        return [name for names in self._names.values() for name in names]

    def main_dtype(self, names: Collection[str]) -> torch.dtype:
        """The type of most values of the tensors `names`, those of integers aside."""
        counts = Counter({torch.float32: 0})
        for name in names:
            if self.dtypes[name] in FLOAT_DTYPES:
                counts[FLOAT_DTYPES[self.dtypes[name]]] += prod(self.shapes[name])
        return counts.most_common(1)[0][0]

    @property
    def largest_file(self) -> int:
        """Bytes of the largest of the files."""
        return max(path.stat().st_size for path in self.files)

    def read(self, names: Collection[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """
        Gives the tensors `names` one after the other, file by file. Each is a view of its file, which is closed before
        the next is opened: copy what is to stay.
        """
        for path in self.files:
            with _open(path) as file:
                for name in self._names[path]:
                    if name in names:
                        yield name, file.get_tensor(name)
