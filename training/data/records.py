"""The records of LLaVA's JSON, checked before anything is learned from them, and their images."""

import hashlib
import json
import logging
from abc import ABC, abstractmethod
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import Dataset

from ...files.user_error import UserError
from ...processing.encoder_processor import EncoderProcessor
from ...processing.processing_hawaii import HawaiiProcessor
from .conversations import read_messages


logger = logging.getLogger(__name__)

NUM_HASH_BITS = 64


def _parse(text: str, data_path: str, first_line: int = 1):
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{data_path}, line {first_line + error.lineno - 1}: {error.msg}.") from error


def read_records(data_path: str) -> list[dict]:
    """
    Reads a `.json` file that holds a list of records, or a `.jsonl` file of one record a line.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON of that form; the line is named.
    """
    path = Path(data_path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no data file {data_path}.")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{data_path} is not UTF-8 text: {error}.") from error
    if path.suffix == ".jsonl":
        lines = enumerate(text.split("\n"), start=1)
        records = [_parse(line, data_path, number) for number, line in lines if line.strip()]
    else:
        records = _parse(text, data_path)
    if not isinstance(records, list) or not records or not isinstance(records[0], dict):
        raise UserError(
            f"{data_path} must hold a list of records, one or more; each a JSON object with conversations."
        )
    return records


def image_paths(record: dict) -> list[str]:
    """What a record names as its image or images."""
    image = record.get("image")
    if image is None:
        return []
    return image if isinstance(image, list) else [image]


def _is_within(name: str, share: float) -> bool:
    """Whether a hash of `name`, the same on every machine, falls into this share of all hashes."""
    digest = hashlib.blake2b(name.encode(errors="backslashreplace"), digest_size=NUM_HASH_BITS // 8).digest()
    return int.from_bytes(digest, "big") < share * 2**NUM_HASH_BITS


def choose_share(records: list[dict], share: float, data_path: str) -> list[dict]:
    """
    The records about a share of the images, chosen by a hash of each image's path: whoever asks for the same share of
    the same images gets the same ones, and a smaller share lies within a larger one. A record of several images is
    among them where all of its images are; one of text alone is chosen by its id.

    Args:
        records (`list[dict]`):
            Checked ones.
        share (`float`):
            Above 0 and at most 1, which is all of them.
        data_path (`str`):
            Where they are from, for the error.

    Raises:
        ValueError: no record about an image is left, or none at all.
    """
    chosen = []
    for record in records:
        names = image_paths(record) or [str(record["id"])]
        if all(_is_within(name, share) for name in names):
            chosen.append(record)
    images = {path for record in records for path in image_paths(record)}
    if not chosen or (images and not any(image_paths(record) for record in chosen)):
        raise UserError(
            f"image_share {share} leaves nothing to learn from of the {len(images)} images in the {len(records)} "
            f"records of {data_path}; make it larger."
        )
    return chosen


class RecordDataset(Dataset, ABC):
    """
    Samples of a LLaVA JSON file; `_read` of a subclass says what a sample is. What can be told without decoding is
    checked when it is made; a broken image shows when it is read.

    Args:
        data_path (`str`):
            The JSON file: records `{"id", "image", "conversations"}`, where `image` may be missing or a list.
        image_folder (`str`):
            What `image` is relative to; no image may lie outside.
        processor (`HawaiiProcessor` or `EncoderProcessor`):
            Squares and normalises images; tokenizes conversations, where these are read.
        bad_records (`str`, *optional*, defaults to `"error"`):
            `"error"` stops at records that cannot be used, `"skip"` leaves them out and says how many.

    Raises:
        FileNotFoundError: the data file or the folder is missing.
        ValueError: records cannot be used, and are not to be skipped; the first are named with what is wrong.
    """

    # What else can be done about a bad record than mending it.
    way_out = "take it out of the file"

    def __init__(
        self,
        data_path: str,
        image_folder: str,
        processor: HawaiiProcessor | EncoderProcessor,
        bad_records: str = "error",
    ):
        self.image_folder = Path(image_folder).resolve()
        if not self.image_folder.is_dir():
            raise FileNotFoundError(f"There is no image folder {image_folder}.")
        self.processor = processor
        self.bad_records = bad_records
        self.data_path = data_path
        self.records = self._check(self._read_records())

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict:
        """
        The sample of a record; where bad ones are skipped, that of the next record that can be read.

        Raises:
            ValueError: it cannot be read, and bad records are not to be skipped.
        """
        for number in [*range(index, len(self)), *range(index)]:
            try:
                return self._read(number)
            except ValueError as error:
                if self.bad_records == "error":
                    raise self._error(number, error) from error
                logger.warning("%s. The next one takes its place.", self._complaint(number, error))
        raise UserError(f"No record of {self.data_path} can be read: see the warnings above.")

    def _read_records(self) -> list[dict]:
        return read_records(self.data_path)

    @abstractmethod
    def _read(self, index: int) -> dict:
        """The sample of a record; raises a `ValueError` where it cannot be read."""

    def _complaint(self, index: int, error: ValueError) -> str:
        return f"{self.data_path}, record {self.records[index]['id']!r}: {str(error).removesuffix('.')}"

    def _error(self, index: int, error: ValueError) -> ValueError:
        return UserError(f"{self._complaint(index, error)}. Mend it, or {self.way_out}.")

    def _read_squares(self, paths: list[str]) -> list[Image.Image]:
        squares = []
        for path in paths:
            try:
                with Image.open(self.image_folder / path) as image:
                    squares.append(self.processor.square_image(image))
            except Exception as error:  # Pillow raises anything from SyntaxError to struct.error
                raise UserError(f"its image {self.image_folder / path} cannot be read ({error})") from error
        return squares

    def _pixel_values(self, squares: list[Image.Image]) -> torch.Tensor:
        """What the student sees of them, `(num_images, 3, image_size, image_size)`."""
        return self.processor.image_processor(squares, return_tensors="pt")["pixel_values"]

    def _check(self, records: list[dict]) -> list[dict]:
        good, problems = [], []
        for index, record in enumerate(records):
            problem = self._problem(record)
            if problem is None:
                # One without an id goes by its place in the file, whatever is left out before it.
                good.append({"id": index, **record})
            else:
                name = record.get("id", index) if isinstance(record, dict) else index
                problems.append(f"record {name!r}: {problem}")
        if not problems:
            return good
        summary = f"{len(problems)} of {len(records)} records of {self.data_path} cannot be used: " + "; ".join(
            problems[:5]
        )
        if self.bad_records == "error" or not good:
            raise UserError(f"{summary}. Mend them, or {self.way_out.replace(' it ', ' them ')}.")
        logger.warning("%s. They are left out.", summary)
        return good

    def _problem(self, record) -> str | None:
        if not isinstance(record, dict) or not isinstance(record.get("conversations"), list):
            return "it has no list of conversations"
        paths = image_paths(record)
        try:
            read_messages(record["conversations"], len(paths))
        except ValueError as error:
            return str(error)
        return self._path_problem(paths)

    def _path_problem(self, paths: list) -> str | None:
        for path in paths:
            if not isinstance(path, str) or "\0" in path:
                return f"its image is {path!r}, not a path"
            try:
                full = (self.image_folder / path).resolve()
                if not full.is_relative_to(self.image_folder):
                    return f"its image {path} lies outside {self.image_folder}"
                if not full.is_file():
                    return f"its image {full} is missing"
            except (OSError, ValueError, RuntimeError) as error:
                # A name that is too long, one that the disk cannot spell, links that go round in a circle.
                return f"its image {path!r} cannot be looked up ({error})"
        return None
