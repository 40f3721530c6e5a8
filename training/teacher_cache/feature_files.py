"""
The files of a cache: features of many images in each, and an index. All reads are memory-mapped, and what is read is
compared with its checksum.
"""

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ...files.atomic import atomic_file
from ...files.digest import digest
from ...files.user_error import UserError
from ...files.write_errors import explain_write_errors
from .contents import CONTENTS_FILE, INDEX_FILE, Contents
from .quantization import Quantized, images_per_block, quantize


IMAGES = "images"  # name of the tensor of the images' digests
CHECKSUM = "checksum"
DIGEST_BYTES = 16
# Shapes: n images of a file, N of a cache, m cells, C channels, b blocks.


def to_rows(digests: Sequence[str]) -> torch.Tensor:
    """Returns hexadecimal digests as a tensor `(n, 16)`, uint8."""
    content = bytearray.fromhex("".join(digests))
    return torch.frombuffer(content, dtype=torch.uint8).view(-1, DIGEST_BYTES)


def to_digests(rows: torch.Tensor) -> list[str]:
    """The inverse of [`to_rows`]."""
    return [row.tobytes().hex() for row in rows.numpy()]


def square_key(image: str, index: int) -> str:
    """Digest of a square of an image: that of the image for the first one, the whole picture."""
    return digest(f"{image} {index}".encode()) if index else image


def checksum(*tensors: torch.Tensor) -> int:
    """Returns the CRC-32 of contiguous tensors' bytes, precisions and shapes."""
    value = 0
    for tensor in tensors:
        value = zlib.crc32(f"{tensor.dtype} {tuple(tensor.shape)}".encode(), value)
        value = zlib.crc32(tensor.flatten().view(torch.uint8).numpy(), value)
    return value


def open_tensors(path: Path) -> dict[str, torch.Tensor]:
    """
    Maps the tensors of a file into memory; only the parts that are used are read.

    Raises:
        UserError: the file is damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}): remove it and run `hawaii cache` again.") from error


def _write(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    with explain_write_errors(path, "run `hawaii cache` again."), atomic_file(path) as incomplete:
        save_file(tensors, incomplete, {"format": "pt", **metadata})


def write_features(folder: Path, contents: Contents, digests: Sequence[str], features: list[torch.Tensor]) -> Path:
    """
    Writes the features of some images, in a file that is complete or absent.

    Args:
        folder (`Path`):
            Subfolder of the cache.
        contents ([`Contents`]):
            Of the subfolder.
        digests (`Sequence[str]`):
            The digest of each image.
        features (`list[torch.FloatTensor]`):
            For each teacher `(num_images, num_cells, channels)`.
    """
    tensors = {IMAGES: to_rows(digests)}
    for teacher, values in enumerate(features):
        if contents.storage == "int8":
            for name, tensor in quantize(values)._asdict().items():
                tensors[f"{teacher}.{name}"] = tensor
        else:
            tensors[f"{teacher}.values"] = values.to(torch.bfloat16)
        rows = (_read_row(tensors, teacher, row) for row in range(len(digests)))
        tensors[f"{teacher}.{CHECKSUM}"] = torch.tensor([checksum(*row) for row in rows])
    path = folder / f"features-{digest(tensors[IMAGES].numpy())}.safetensors"
    _write(path, tensors, {})
    return path


def _read_row(tensors: dict[str, torch.Tensor], teacher: int, row: int) -> tuple[torch.Tensor, ...]:
    """Returns views of one image's features: `(1, m, C)` and, if they are in 8 bits, scale and offset `(1, C)`."""
    values = tensors[f"{teacher}.values"]
    if f"{teacher}.scale" not in tensors:
        return (values[row : row + 1],)
    block = row // images_per_block(values.shape[1])
    scale, offset = (tensors[f"{teacher}.{name}"][block : block + 1] for name in ("scale", "offset"))
    return Quantized(values[row : row + 1], scale, offset)


def feature_files(folder: Path) -> list[Path]:
    """Returns the complete files of features in a subfolder, in a fixed order."""
    return sorted(folder.glob("features-*.safetensors"))


def stored_images(folder: Path) -> set[str]:
    """Returns the digests of all images that have features; only digests are read."""
    return {image for path in feature_files(folder) for image in to_digests(open_tensors(path)[IMAGES])}


def write_index(folder: Path, contents: Contents) -> int:
    """Writes the index of all files of a subfolder with these contents; returns the number of images."""
    files = feature_files(folder)
    images = [open_tensors(path)[IMAGES] for path in files]
    sizes = torch.tensor([len(rows) for rows in images], dtype=torch.int64)
    images = torch.cat(images) if images else torch.empty(0, DIGEST_BYTES, dtype=torch.uint8)
    # If an image is in two files, because two processes computed it, the first is used.
    _, order = np.unique(images.numpy().view(f"S{DIGEST_BYTES}").ravel(), return_index=True)
    order = torch.from_numpy(order)
    number = torch.arange(len(files)).repeat_interleave(sizes)
    row = torch.arange(len(images)) - (sizes.cumsum(0) - sizes)[number]
    tensors = {IMAGES: images[order], "file": number[order].int(), "row": row[order].int()}
    metadata = {str(index): f"{path.name} {path.stat().st_size}" for index, path in enumerate(files)}
    metadata["contents"] = contents.folder_name
    metadata[CHECKSUM] = _index_checksum(tensors, metadata)
    _write(folder / INDEX_FILE, tensors, metadata)
    return len(order)


def _index_checksum(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> str:
    names = sorted(metadata.keys() - {CHECKSUM, "format"})
    return digest(
        *(f"{name} {metadata[name]}\n".encode() for name in names), str(checksum(*tensors.values())).encode()
    )


class FeatureFiles:
    """
    Features of single images, read in any process. Files are opened when they are first used, also after the object
    was sent to another process.

    Args:
        folder (`Path`):
            Subfolder of a cache.
        contents ([`Contents`]):
            Of the subfolder.

    Raises:
        UserError: the cache is not finished, or one of its files is missing or has another size.
    """

    def __init__(self, folder: Path, contents: Contents):
        self.folder, self.contents = folder, contents
        path = folder / INDEX_FILE
        if not path.is_file():
            raise UserError(
                f"The cache {folder} is not finished: run `hawaii cache` again; it continues where it stopped."
            )
        tensors = open_tensors(path)
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        tensors = {name: tensors.get(name, torch.empty(0)) for name in (IMAGES, "file", "row")}
        if metadata.get(CHECKSUM) != _index_checksum(tensors, metadata):
            raise UserError(f"{path} is damaged: remove it and run `hawaii cache` again.")
        if metadata["contents"] != contents.folder_name:
            raise UserError(
                f"{folder / CONTENTS_FILE} has changed since {INDEX_FILE} was written: run `hawaii cache` again."
            )
        names = [metadata[str(index)].split(" ") for index in range(sum(map(str.isdigit, metadata)))]
        for name, size in names:
            file = folder / name
            if not file.is_file() or file.stat().st_size != int(size):
                raise UserError(
                    f"{file} is missing or damaged: remove it and the {INDEX_FILE} next to it, and run `hawaii cache` "
                    "again, which computes the missing features."
                )
        self.names = [name for name, _ in names]

    def __getstate__(self) -> dict:
        return {name: self.__dict__[name] for name in ("folder", "contents", "names")}

    def __len__(self) -> int:
        return len(self._index()[0])

    def find(self, image: str) -> tuple[int, int] | None:
        """Returns file and row of the image with this digest; `None` if it has no features."""
        keys, file, row = self._index()
        key = np.frombuffer(bytes.fromhex(image), dtype=keys.dtype)[0]
        place = int(np.searchsorted(keys, key))
        if place == len(keys) or keys[place] != key:
            return None
        return int(file[place]), int(row[place])

    def read(self, place: tuple[int, int], teacher: int) -> tuple[torch.Tensor, ...]:
        """
        Returns views of one image's features: [`Quantized`], `(1, m, C)` with scales `(1, C)`, or the values alone.

        Raises:
            UserError: they differ from their checksum.
        """
        tensors, (number, row) = self._file(place[0]), place
        try:
            features = _read_row(tensors, teacher, row)
            is_whole = checksum(*features) == tensors[f"{teacher}.{CHECKSUM}"][row].item()
        except (KeyError, IndexError):
            features, is_whole = (), False
        if not is_whole:
            raise UserError(
                f"{self.folder / self.names[number]} is damaged: remove it and the {INDEX_FILE} next to it, and run "
                "`hawaii cache` again, which computes the missing features."
            )
        return features

    def _index(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if "_opened_index" not in self.__dict__:
            tensors = open_tensors(self.folder / INDEX_FILE)
            keys = tensors[IMAGES].numpy().view(f"S{DIGEST_BYTES}").ravel()
            self._opened_index = (keys, tensors["file"].numpy(), tensors["row"].numpy())
        return self._opened_index

    def _file(self, number: int) -> dict[str, torch.Tensor]:
        if "_opened" not in self.__dict__:
            self._opened: dict[int, dict[str, torch.Tensor]] = {}
        if number not in self._opened:
            self._opened[number] = open_tensors(self.folder / self.names[number])
        return self._opened[number]
