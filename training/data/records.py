"""Data sets of records, checked before training, and their images."""

import hashlib
import json
import logging
import operator
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from ...files.digest import digest
from ...files.user_error import UserError
from ...processing import images_hawaii
from ...processing.encoder_processor import EncoderProcessor
from ...processing.processing_hawaii import HawaiiProcessor
from ..sources.cache import read_cached
from ..sources.image_folder import ImageStore
from ..sources.readers import code_digest
from ..sources.record import Record
from ..sources.record_table import RecordTable
from ..sources.source import Source
from .checked import find_checked, image_states, processor_key
from .processes import decide_once
from .reader import FeaturesError, RecordReader


logger = logging.getLogger(__name__)

CHECKING = Path(__file__).parents[1] / "checking"  # its code decides the result of a check
NUM_LOOKED_AT = 100  # records of a data set with a cached result that are checked again at each start


def is_in_share(record: Record, share: float, identify: Callable[[str], str] = str) -> bool:
    """
    Whether the record is in a share of the images. This depends on a hash of each image's path, so the result is the
    same on every machine, a smaller share is a subset of a larger one, and a share of 1 contains all images. A record
    with several images is in the share if all of its images are; for a record without images, the id is hashed. The
    hash must never change, or two stages of a run would use different images.

    Args:
        record (`Record`), share (`float`):
            The record and the share.
        identify (`Callable[[str], str]`, *optional*):
            Returns the text to hash for an image; its path if not given.
    """
    names = list(map(identify, record.images)) or [str(record.id)]
    digests = [hashlib.blake2b(name.encode(errors="backslashreplace"), digest_size=8).digest() for name in names]
    return all(int.from_bytes(digest, "big") < share * 2**64 for digest in digests)


def choose_share(
    records: Iterable[Record], share: float, data_path: str, identify: Callable[[str], str] = str
) -> np.ndarray:
    """
    Returns the indices of the records of a share of the images, see [`is_in_share`].

    Raises:
        UserError: The share has no record, or none with an image although there are some; names `data_path`.
    """
    chosen, images, has_images, number = [], set(), False, -1
    for number, record in enumerate(records):
        images.update(record.images)
        if is_in_share(record, share, identify):
            chosen.append(number)
            has_images = has_images or bool(record.images)
    if not chosen or (images and not has_images):
        raise UserError(
            f"image_share {share} selects no record with an image: there are {len(images)} images in the "
            f"{number + 1} records of {data_path}; make it larger."
        )
    return np.array(chosen)


class RecordDataset(RecordReader, Dataset):
    """
    Base of the data sets. All checks that need no decoding run in `__init__`, unless a result for the same data is
    cached. A broken image raises an error when its sample is read.

    Args:
        data_path (`str` or [`Source`]):
            Data, see [`Source`].
        image_folder (`str`, *optional*):
            Folder or archive of the images. Paths in records may not leave it; links in it may.
        processor, teacher_image_size, feature_cache:
            As for [`RecordReader`].
        bad_records (`str`, *optional*, defaults to `"error"`):
            `"error"` raises for records that cannot be used; `"skip"` drops them with a warning.
        image_share (`float`, *optional*, defaults to 1.0):
            Share of the images to train on, see [`is_in_share`].
        follow_links (`bool`, *optional*, defaults to `True`):
            Whether an image may be a symbolic link or in a linked folder.

    Attributes:
        records ([`RecordTable`]):
            The usable records of the share.

    Raises:
        UserError: The data file or the folder is missing, no record is within the share, or records cannot be used
            and `bad_records` is `"error"`; names the first ones and the problem of each.
    """

    kind: str  # part of the key of a check's result
    hint = "set bad_records: skip"  # the alternative to fixing a bad record
    images: ImageStore

    def __init__(
        self,
        data_path: str | Source,
        image_folder: str | None,
        processor: HawaiiProcessor | EncoderProcessor,
        bad_records: str = "error",
        image_share: float = 1.0,
        follow_links: bool = True,
        **kwargs,
    ):
        source = data_path if isinstance(data_path, Source) else Source(data_path, image_folder)
        self.data_path = source.path
        self.bad_records = bad_records
        self.follow_links = follow_links
        self.sizes: tuple[torch.Tensor, torch.Tensor] | None = None  # lengths and numbers of tiles, see `measure`
        records, images = self._read_source(source)
        super().__init__(images, processor, **kwargs)
        self.checked = find_checked(self.check_key(records))
        records = self._check(records)
        if image_share < 1:
            records = records.select(
                choose_share(records.without_messages(), image_share, self.data_path, self.identify)
            )
        self.records = records

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
                if isinstance(error, FeaturesError):
                    raise UserError(f"{problem}.") from error
                if self.bad_records == "error":
                    raise UserError(f"{problem}. Fix it, or {self.hint}.") from error
                logger.warning("%s. The next one takes its place.", problem)
        raise UserError(f"No record of {self.data_path} can be read: see the warnings above.")

    def count_samples(self) -> tuple[list[int], list[int]]:
        """
        The number of tokens of each sample, and the number of squares of its images, without reading them. Here each
        image is one square, and each sample has one token: all images have the same number.
        """
        return [1] * len(self), [len(record.images) for record in self.records.without_messages()]

    def lengths(self) -> list[int]:
        """The number of tokens of each sample."""
        return self.count_samples()[0]

    def measure(self) -> tuple[list[int], list[int]]:
        """
        Returns the numbers of tokens and of tiles, see [`count_samples`]. Afterwards, a bad sample is replaced by one
        that fits its batch.
        """
        lengths, num_tiles = self.count_samples()
        self.sizes = torch.tensor(lengths), torch.tensor(num_tiles)
        return lengths, num_tiles

    def _replacements(self, index: int) -> Iterator[int]:
        """
        Yields a sample and then the samples that may replace it: the next ones. If batches are made by lengths, those
        that fit into its batch come first.
        """
        yield index
        others = torch.cat([torch.arange(index + 1, len(self)), torch.arange(index)])
        if self.sizes is None:
            yield from others.tolist()
            return
        lengths, num_tiles = self.sizes
        is_smaller = (lengths <= lengths[index]) & (num_tiles <= num_tiles[index])
        fits = is_smaller & (lengths > 0) & ((num_tiles > 0) == (num_tiles[index] > 0))
        yield from others[fits[others]].tolist()
        yield from others[~fits[others]].tolist()

    def _read_source(self, source: Source) -> tuple[RecordTable, ImageStore]:
        return source.read(self.follow_links)

    def _read(self, index: int) -> dict:
        return self.make_sample(self.records[index])

    def _name_record(self, index: int, error: UserError) -> str:
        return f"{self.data_path}, record {self.records[index].id!r}: {str(error).removesuffix('.')}"

    def _cheap_key(self, records: RecordTable) -> str:
        """A digest of everything that the checks without decoding depend on, except the image folder's content."""
        code = [Path(__file__).with_name(name) for name in ("reader.py", "records.py", "images.py", "questions.py")]
        images = [str(self.images.root), str(self.follow_links), self.kind]
        return digest(*code, code_digest().encode(), records.path.name.encode(), "\n".join(images).encode())

    def check_key(self, records: RecordTable) -> str:
        """A digest of everything that the result of `hawaii check` depends on, except the image folder's content."""
        folders = [Path(__file__).parent, Path(images_hawaii.__file__).parent, CHECKING]
        code = [path for folder in folders for path in sorted(folder.glob("*.py"))]
        options = "\n".join(self._check_options()).encode()
        return digest(*code, self._cheap_key(records).encode(), processor_key(self.processor), options)

    def _check_options(self) -> list[str]:
        """Further options that decide whether a record is good."""
        return []

    def _find_problems(self, records: RecordTable) -> dict[int, str]:
        """
        Returns the problems of the records that cannot be used, by their indices. Some of the records without a known
        problem are checked again. If one of these has a problem now, such as an image on a disk that is not mounted,
        all records are checked.
        """
        if self.checked is None:
            write = partial(self._write_problems, records)
            bad = read_cached(f"{self._cheap_key(records)}.problems.json", write, self._read_problems)
            problems = {number: self._find_problem(records[number]) for number in bad}
        else:
            problems = {
                number: problem
                if image_states(self.images, [records[number]]) == self.checked.image_states[number]
                else self._find_problem(records[number])
                for number, problem in self.checked.problems.items()
            }
        good = np.setdiff1d(np.arange(len(records)), list(problems))
        if any(self._find_problem(records[int(number)]) for number in good[:: max(1, len(good) // NUM_LOOKED_AT)]):
            found = ((number, self._find_problem(record)) for number, record in enumerate(records))
            problems = dict(found) | {number: problem for number, problem in problems.items() if problem is not None}
        return {number: problem for number, problem in sorted(problems.items()) if problem is not None}

    def _write_problems(self, records: RecordTable, path: Path) -> None:
        bad = [number for number, record in enumerate(records) if self._find_problem(record) is not None]
        path.write_text(json.dumps(bad), encoding="utf-8")

    @staticmethod
    def _read_problems(path: Path) -> list[int]:
        return np.array(json.loads(path.read_text(encoding="utf-8")), np.int64).tolist()

    def _check(self, records: RecordTable) -> RecordTable:
        """Returns the usable records; raises or warns if there are others."""
        problems = decide_once(self._find_problems, records)
        if not problems:
            return records
        first = "; ".join(
            f"record {records[number].id!r}: {problem}" for number, problem in islice(problems.items(), 5)
        )
        summary = f"{len(problems)} of {len(records)} records of {self.data_path} cannot be used: {first}"
        if self.bad_records == "error" or len(problems) == len(records):
            raise UserError(f"{summary}. Fix them, or {self.hint.replace(' it ', ' them ')}.")
        logger.warning("%s. They are skipped.", summary)
        return records.select(np.delete(np.arange(len(records)), list(problems)))
