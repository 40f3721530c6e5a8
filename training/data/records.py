"""Data sets of records, checked before training, and their images."""

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import Dataset

from ...files.user_error import UserError
from ...processing.encoder_processor import EncoderProcessor
from ...processing.processing_hawaii import HawaiiProcessor
from .conversations import clean_text
from .readers import read_records
from .record import Record


logger = logging.getLogger(__name__)

NUM_HASH_BITS = 64


def _is_within(name: str, share: float) -> bool:
    """Returns whether a hash of `name`, equal on every machine, falls into this share of all hashes."""
    digest = hashlib.blake2b(name.encode(errors="backslashreplace"), digest_size=NUM_HASH_BITS // 8).digest()
    return int.from_bytes(digest, "big") < share * 2**NUM_HASH_BITS


def choose_share(records: list[Record], share: float, data_path: str) -> list[Record]:
    """
    Chooses the records of a share of the images by a hash of each image's path: the choice is the same on every
    machine, and a smaller share is a subset of a larger one. A record with several images is chosen if all of its
    images are; a record without images is chosen by its id.

    Args:
        records (`list[Record]`):
            Checked records.
        share (`float`):
            Above 0 and at most 1, which chooses all.
        data_path (`str`):
            Source of the records, for the error.

    Raises:
        UserError: The share has no record, or none with an image although there are some.
    """
    chosen = []
    for record in records:
        names = record.images or [str(record.id)]
        if all(_is_within(name, share) for name in names):
            chosen.append(record)
    images = {path for record in records for path in record.images}
    if not chosen or (images and not any(record.images for record in chosen)):
        raise UserError(
            f"image_share {share} leaves nothing to learn from of the {len(images)} images in the {len(records)} "
            f"records of {data_path}; make it larger."
        )
    return chosen


class RecordDataset(Dataset, ABC):
    """
    Base of the data sets; `_read` of a subclass makes a sample. All checks that need no decoding run in `__init__`;
    a broken image raises when its sample is read.

    Args:
        data_path (`str`):
            Data file of a format in [`READERS`].
        image_folder (`str`):
            Folder of the images, which must all be inside it.
        processor (`HawaiiProcessor` or `EncoderProcessor`):
            Squares and normalises images; tokenizes conversations.
        bad_records (`str`, *optional*, defaults to `"error"`):
            `"error"` raises for records that cannot be used; `"skip"` drops them with a warning.

    Raises:
        UserError: The data file or the folder is missing, or records cannot be used and `bad_records` is `"error"`;
            names the first ones and the problem of each.
    """

    # The alternative to fixing a bad record.
    hint = "remove it from the file"

    def __init__(
        self,
        data_path: str,
        image_folder: str,
        processor: HawaiiProcessor | EncoderProcessor,
        bad_records: str = "error",
    ):
        self.image_folder = Path(image_folder).resolve()
        if not self.image_folder.is_dir():
            raise UserError(f"There is no image folder {image_folder}.")
        self.processor = processor
        self.bad_records = bad_records
        self.data_path = data_path
        self.records = self._check(self._read_records())

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict:
        """
        Returns the sample of a record; if bad records are skipped, that of the next readable record.

        Raises:
            UserError: The record cannot be read, and `bad_records` is `"error"`.
        """
        for number in [*range(index, len(self)), *range(index)]:
            try:
                return self._read(number)
            except ValueError as error:
                if self.bad_records == "error":
                    raise self._error(number, error) from error
                logger.warning("%s. The next one takes its place.", self._complaint(number, error))
        raise UserError(f"No record of {self.data_path} can be read: see the warnings above.")

    def _read_records(self) -> list[Record]:
        return read_records(self.data_path)

    @abstractmethod
    def _read(self, index: int) -> dict:
        """Returns the sample of a record; raises a `ValueError` if it cannot be read."""

    def _complaint(self, index: int, error: ValueError) -> str:
        return f"{self.data_path}, record {self.records[index].id!r}: {str(error).removesuffix('.')}"

    def _error(self, index: int, error: ValueError) -> ValueError:
        return UserError(f"{self._complaint(index, error)}. Fix it, or {self.hint}.")

    def _read_squares(self, paths: Sequence[str]) -> list[Image.Image]:
        squares = []
        for path in paths:
            try:
                with Image.open(self.image_folder / path) as image:
                    squares.append(self.processor.square_image(image))
            except Exception as error:  # Pillow raises anything from SyntaxError to struct.error
                raise UserError(f"its image {self.image_folder / path} cannot be read ({error})") from error
        return squares

    def _pixel_values(self, squares: list[Image.Image]) -> torch.Tensor:
        """Returns the student's input, `(num_images, 3, image_size, image_size)`."""
        return self.processor.image_processor(squares, return_tensors="pt")["pixel_values"]

    def _check(self, records: list[Record]) -> list[Record]:
        good, problems = [], []
        for record in records:
            problem = self._problem(record)
            if problem is None:
                good.append(record)
            else:
                problems.append(f"record {record.id!r}: {problem}")
        if not problems:
            return good
        summary = f"{len(problems)} of {len(records)} records of {self.data_path} cannot be used: " + "; ".join(
            problems[:5]
        )
        if self.bad_records == "error" or not good:
            raise UserError(f"{summary}. Fix them, or {self.hint.replace(' it ', ' them ')}.")
        logger.warning("%s. They are skipped.", summary)
        return good

    def _problem(self, record: Record) -> str | None:
        """Returns why the record cannot be used; data sets of images alone check less."""
        if record.problem is not None:
            return record.problem
        for message in record.messages:
            try:
                message.text.encode()
            except UnicodeEncodeError as error:
                return f"its text {message.text!r} cannot be tokenized ({error.reason})"
        if not any(message.role == "assistant" and clean_text(message.text) for message in record.messages):
            return "it has no answer to learn"
        num_images = sum(message.num_images for message in record.messages)
        if num_images != len(record.images):
            return f"its conversation shows {num_images} images but it has {len(record.images)} images"
        return self._path_problem(record.images)

    def _path_problem(self, paths: Sequence) -> str | None:
        for path in paths:
            if not isinstance(path, str) or "\0" in path:
                return f"its image is {path!r}, not a path"
            try:
                full = (self.image_folder / path).resolve()
                if not full.is_relative_to(self.image_folder):
                    return f"its image {path} is outside {self.image_folder}"
                if not full.is_file():
                    return f"its image {full} is missing"
            except (OSError, ValueError, RuntimeError) as error:
                # A name that is too long or that the file system cannot encode, or a cycle of links.
                return f"its image {path!r} cannot be looked up ({error})"
        return None
