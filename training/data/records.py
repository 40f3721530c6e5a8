"""Data sets of records, checked before training, and their images."""

import hashlib
import logging
import operator
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import Dataset

from ...files.user_error import UserError
from ...processing.encoder_processor import EncoderProcessor
from ...processing.images_hawaii import open_image, to_planes
from ...processing.processing_hawaii import HawaiiProcessor
from .checked import find_checked, image_key, make_key, processor_key
from .conversations import clean_text
from .readers import read_records
from .record import Record, short_repr


logger = logging.getLogger(__name__)


def teacher_image(square: Image.Image, size: int) -> torch.Tensor:
    """Resizes a square image for the teachers: `(3, size, size)`, uint8."""
    return to_planes(square.resize((size, size), Image.Resampling.BICUBIC))


def choose_share(records: list[Record], share: float, data_path: str) -> list[Record]:
    """
    Chooses the records of a share of the images by a hash of each image's path: the choice is the same on every
    machine, a smaller share is a subset of a larger one, and 1 chooses all. A record with several images is chosen if
    all of its images are; a record without images is chosen by its id. The hash must never change, or a finished stage
    and the next one would have other images.

    Raises:
        UserError: The share has no record, or none with an image although there are some; names `data_path`.
    """
    if share == 1:
        return records
    chosen = []
    for record in records:
        names = record.images or [str(record.id)]
        digests = [hashlib.blake2b(name.encode(errors="backslashreplace"), digest_size=8).digest() for name in names]
        if all(int.from_bytes(digest, "big") < share * 2**64 for digest in digests):
            chosen.append(record)
    images = {path for record in records for path in record.images}
    if not chosen or (images and not any(record.images for record in chosen)):
        raise UserError(
            f"image_share {share} selects no record with an image: there are {len(images)} images in the "
            f"{len(records)} records of {data_path}; make it larger."
        )
    return chosen


class RecordDataset(Dataset, ABC):
    """
    Base of the data sets; `_read` of a subclass makes a sample. All checks that need no decoding run in `__init__`;
    a broken image raises when its sample is read. After a `hawaii check` of the same contents, its result takes the
    place of all checks.

    Args:
        data_path (`str`):
            Data file of a format in [`READERS`].
        image_folder (`str`):
            Folder of the images. Paths in records may not leave it; links in it may.
        processor (`HawaiiProcessor` or `EncoderProcessor`):
            Squares and normalises images; tokenizes conversations.
        bad_records (`str`, *optional*, defaults to `"error"`):
            `"error"` raises for records that cannot be used; `"skip"` drops them with a warning.
        image_share (`float`, *optional*, defaults to 1.0):
            Share of the images to train on, see [`choose_share`].
        teacher_image_size (`int`, *optional*):
            Side of the uint8 image that all teachers share; no image is made for them if not given.
        follow_links (`bool`, *optional*, defaults to `True`):
            Whether an image may be a symbolic link or in a linked folder.

    Raises:
        UserError: The data file or the folder is missing, no record is within the share, or records cannot be used
            and `bad_records` is `"error"`; names the first ones and the problem of each.
    """

    kind: str  # a check of one kind says nothing about another
    hint = "set bad_records: skip"  # the alternative to fixing a bad record

    def __init__(
        self,
        data_path: str,
        image_folder: str,
        processor: HawaiiProcessor | EncoderProcessor,
        bad_records: str = "error",
        image_share: float = 1.0,
        teacher_image_size: int | None = None,
        follow_links: bool = True,
    ):
        self.image_folder = Path(image_folder).resolve()
        if not self.image_folder.is_dir():
            raise UserError(f"There is no image folder {image_folder}.")
        self.processor = processor
        self.bad_records = bad_records
        self.teacher_image_size = teacher_image_size
        self.follow_links = follow_links
        self.data_path = data_path
        self.sizes: tuple[torch.Tensor, torch.Tensor] | None = None  # length and has_images of each sample, if needed
        records = self._read_records()
        self.checked = find_checked(lambda: self._source_key(records), lambda: self._images_key(records))
        self.records = choose_share(self._check(records), image_share, data_path)
        numbers = {} if self.checked is None else {id(record): number for number, record in enumerate(records)}
        self.row_numbers = [numbers.get(id(record), -1) for record in self.records]  # in a check

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict:
        """
        Returns the sample of a record; if bad records are skipped, that of the next readable record. A negative index
        counts from the end.

        Raises:
            IndexError: There is no such record, which ends an iteration.
            UserError: The record cannot be read, and `bad_records` is `"error"`.
        """
        index = operator.index(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.data_path} has {len(self)} records; there is no sample {index}.")
        index %= len(self)
        for number in self._replacements(index):
            try:
                return self._read(number)
            except UserError as error:
                problem = self._name_record(number, error)
                if self.bad_records == "error":
                    raise UserError(f"{problem}. Fix it, or {self.hint}.") from error
                logger.warning("%s. The next one takes its place.", problem)
        raise UserError(f"No record of {self.data_path} can be read: see the warnings above.")

    def lengths(self) -> list[int]:
        """The number of tokens of each sample; 1 for an image, which has as many as every other."""
        return [1] * len(self)

    def has_images(self) -> list[bool]:
        """Whether each sample has images."""
        return [bool(record.images) for record in self.records]

    def _replacements(self, index: int) -> Iterator[int]:
        """
        Yields a sample and then those that may take its place: the next ones, but first those that fit into its
        batch, if batches are made by lengths.
        """
        yield index
        others = torch.cat([torch.arange(index + 1, len(self)), torch.arange(index)])
        if self.sizes is None:
            yield from others.tolist()
            return
        lengths, has_images = self.sizes
        fits = (has_images == has_images[index]) & (lengths > 0) & (lengths <= lengths[index])
        yield from others[fits[others]].tolist()
        yield from others[~fits[others]].tolist()

    def _read_records(self) -> list[Record]:
        return read_records(self.data_path)

    @abstractmethod
    def _read(self, index: int) -> dict:
        """Returns the sample of a record; raises a `UserError` if it cannot be read."""

    def _name_record(self, index: int, error: UserError) -> str:
        return f"{self.data_path}, record {self.records[index].id!r}: {str(error).removesuffix('.')}"

    def _open_images(self, record: Record) -> Iterator[Image.Image]:
        """Decodes the images of a record, one after another; raises a `UserError` for one that cannot be read."""
        for path in record.images:
            try:
                yield open_image(self._locate(path))
            except ValueError as error:
                raise UserError(f"its image {self.image_folder / path} cannot be read ({error})") from error

    def _read_images(self, record: Record) -> dict[str, torch.Tensor]:
        """
        Returns:
            `dict` with `pixel_values` of shape `(num_images, 3, image_size, image_size)` and, with a
            `teacher_image_size`, `teacher_images`, uint8, of shape
            `(num_images, 3, teacher_image_size, teacher_image_size)`; empty if the record has no image.
        """
        images = list(self._open_images(record))
        if not images:
            return {}
        processor, size = self.processor.image_processor, self.teacher_image_size
        result = {"pixel_values": processor(images, return_tensors="pt")["pixel_values"]}
        if size is not None:
            squares = [processor.square_image(image, size, Image.Resampling.BICUBIC) for image in images]
            result["teacher_images"] = torch.stack([teacher_image(square, size) for square in squares])
        return result

    def _check(self, records: list[Record]) -> list[Record]:
        """Returns the usable records; raises or warns if there are others."""
        if self.checked is None:
            found = ((index, self._find_problem(record)) for index, record in enumerate(records))
            problems = {index: problem for index, problem in found if problem is not None}
        else:
            problems = self.checked.problems
        if not problems:
            return records
        good = [record for index, record in enumerate(records) if index not in problems]
        first = "; ".join(f"record {records[index].id!r}: {problem}" for index, problem in islice(problems.items(), 5))
        summary = f"{len(problems)} of {len(records)} records of {self.data_path} cannot be used: {first}"
        if self.bad_records == "error" or not good:
            raise UserError(f"{summary}. Fix them, or {self.hint.replace(' it ', ' them ')}.")
        logger.warning("%s. They are skipped.", summary)
        return good

    def content_key(self, records: list[Record]) -> str:
        """Returns the key of everything that a check of the records depends on."""
        return f"{self._source_key(records)}-{self._images_key(records)}"

    def _source_key(self, records: list[Record]) -> str:
        options = [self.kind, str(self.image_folder), str(self.follow_links), *self._check_options()]
        path = Path(self.data_path)
        source = path if path.is_file() else "\n".join(image for record in records for image in record.images)
        return make_key("\0".join(options), source, processor_key(self.processor))

    def _images_key(self, records: list[Record]) -> str:
        return image_key(
            self._locate(image) for record in records for image in record.images if isinstance(image, str)
        )

    def _check_options(self) -> list[str]:
        """Further options that decide whether a record is good."""
        return []

    def _find_problem(self, record: Record) -> str | None:
        """Returns why the record cannot be used; image data sets check less."""
        if record.problem is not None:
            return record.problem
        for message in record.messages:
            try:
                message.text.encode()
            except UnicodeEncodeError as error:
                return f"its text {short_repr(message.text)} cannot be tokenized ({error.reason})"
        if not any(message.role == "assistant" and clean_text(message.text) for message in record.messages):
            return "it has no answer to learn"
        num_images = sum(message.num_images for message in record.messages)
        if num_images != len(record.images):
            return f"its conversation shows {num_images} images but it has {len(record.images)} images"
        return self._find_path_problem(record.images)

    def _locate(self, path: str) -> Path:
        # `..` is removed from the text: behind a link, the system would follow it out of the folder.
        return Path(os.path.normpath(self.image_folder / path))

    def _find_path_problem(self, paths: Sequence) -> str | None:
        for path in paths:
            if not isinstance(path, str) or "\0" in path:
                return f"its image is {short_repr(path)}, not a path"
            full = self._locate(path)
            if not full.is_relative_to(self.image_folder):
                return f"its image {path} is outside {self.image_folder}"
            try:
                if not stat.S_ISREG(full.stat().st_mode):
                    return f"its image {full} is not a file"
                if not self.follow_links and full.resolve() != full:
                    return f"its image {path} is a symbolic link, or in a linked folder, and follow_links is false"
            except (FileNotFoundError, NotADirectoryError):
                return f"its image {full} is missing"
            except (OSError, ValueError, RuntimeError) as error:
                # A name that is too long or that the file system cannot encode, or a cycle of links.
                return f"its image {path!r} cannot be looked up ({error})"
        return None
