"""Samples of streamed sources, in an order that a resume continues exactly."""

import logging
import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, count, islice
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ...files.user_error import UserError
from ..sources.dataset_rows import DatasetStream
from ..sources.record import Record
from ..sources.record_table import TableStream
from .conversation_dataset import first_question
from .reader import RecordReader
from .records import is_in_share


logger = logging.getLogger(__name__)

NUM_TRIES = 1000  # records in a row that cannot be read


@dataclass
class StreamPart:
    """
    Args:
        name (`str`):
            The source in errors.
        stream (`DatasetStream` or `TableStream`):
            Its records.
        reader (`RecordReader`):
            Makes samples of them.
        weight (`float`):
            Share of the samples, relative to the weights of the other parts.
    """

    name: str
    stream: DatasetStream | TableStream
    reader: RecordReader
    weight: float


class SampleStream(IterableDataset):
    """
    An endless stream of samples. Each worker of each process reads its share of every source; a random number decides
    which source the next sample comes from.

    The order depends on the seed and on the numbers of processes and workers only. A resume reads the rows of the
    earlier batches again without opening their images, and yields empty samples for them (`num_skipped`).

    Args:
        parts (`list[StreamPart]`):
            The sources.
        seed (`int`):
            Decides the order.
        bad_records (`str`):
            `"error"` raises for a record that cannot be used; `"skip"` lets the next one take its place.
        image_share (`float`):
            Share of the images to train on, see [`is_in_share`].
        process_index (`int`), num_processes (`int`):
            Index of this process, and number of processes.

    Attributes:
        num_skipped (`int`):
            Number of batches at the start without samples.
        batch_size (`int`):
            Number of samples of a batch; set by [`load_stream`].
    """

    def __init__(
        self,
        parts: list[StreamPart],
        seed: int,
        bad_records: str,
        image_share: float,
        process_index: int,
        num_processes: int,
    ):
        self.parts = parts
        self.seed = seed
        self.bad_records = bad_records
        self.image_share = image_share
        self.process_index, self.num_processes = process_index, num_processes
        self.num_skipped, self.batch_size = 0, 1

    @property
    def data_path(self) -> str:
        """The names of all sources, for errors."""
        return ", ".join(part.name for part in self.parts)

    @property
    def question(self) -> str:
        """The first question of the first source."""
        return first_question(next(self._read_part(self.parts[0], 0, 1)))

    def _read_part(self, part: StreamPart, reader: int, num_readers: int) -> Iterator[Record]:
        """Yields the records of a source that are within the share, epoch after epoch."""
        for epoch in count():
            is_empty = True
            records = part.stream.read(self.seed, epoch, reader, num_readers)
            for record in chain.from_iterable(map(part.reader.split, records)):
                # The images of a record with a problem may be any values. Making its sample raises the error.
                is_chosen = self.image_share == 1 or part.reader._find_problem(record) is not None
                if is_chosen or is_in_share(record, self.image_share, part.reader.identify):
                    is_empty = False
                    yield record
            if is_empty:
                raise UserError(
                    f"{part.name}: reader {reader + 1} of {num_readers} (processes x dataloader_num_workers) finds no "
                    "record; start fewer, or make image_share larger."
                )

    def _read_records(self, reader: int, num_readers: int) -> Iterator[tuple[StreamPart, Record]]:
        records = [self._read_part(part, reader, num_readers) for part in self.parts]
        weights = [part.weight for part in self.parts]
        generator = random.Random(f"{self.seed} {reader} {num_readers}")
        while True:
            (number,) = generator.choices(range(len(records)), weights)
            yield self.parts[number], next(records[number])

    def _make_sample(self, part: StreamPart, record: Record) -> dict:
        try:
            problem = part.reader._find_problem(record)
            if problem is not None:
                raise UserError(problem)
            return part.reader.make_sample(record)
        except UserError as error:
            problem = f"{part.name}, record {record.id!r}: {str(error).removesuffix('.')}"
            raise UserError(f"{problem}. Fix it, or set bad_records: skip.") from error

    def _read_samples(self, reader: int, num_readers: int) -> Iterator[Any]:
        """Yields a function for each position of the stream, which makes the sample and has no arguments."""
        records = self._read_records(reader, num_readers)
        waiting: deque = deque()  # records that were read to replace a bad one; each keeps its own position

        def make() -> dict:
            for number in range(NUM_TRIES):
                if number == len(waiting):
                    waiting.append(next(records))
                try:
                    return self._make_sample(*waiting[number])
                except UserError as error:
                    if self.bad_records == "error":
                        raise
                    logger.warning("%s The next one takes its place.", error)
            raise UserError(f"{self.data_path}: {NUM_TRIES} records in a row cannot be read: see the warnings above.")

        while True:
            if not waiting:
                waiting.append(next(records))
            yield make
            waiting.popleft()

    def __iter__(self) -> Iterator[dict]:
        worker = get_worker_info()
        number, num_workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        reader = self.process_index * num_workers + number
        places = self._read_samples(reader, self.num_processes * num_workers)
        # The loader takes one batch of each worker in turn.
        for batch in count(number, num_workers):
            for make in islice(places, self.batch_size):
                yield {} if batch < self.num_skipped else make()

    def take(self, num_samples: int) -> list[dict]:
        """Returns the first samples, the same on every process."""
        return [make() for make in islice(self._read_samples(0, 1), num_samples)]


class _SkippingCollator:
    """Makes an empty batch of the empty samples before a resume."""

    def __init__(self, collator):
        self.collator = collator

    def __call__(self, samples: list[dict]) -> dict:
        return self.collator(samples) if samples[0] else {}


def load_stream(stream: SampleStream, batch_size: int, collator, **kwargs) -> DataLoader:
    """Returns the loader of this process; `kwargs` as for `DataLoader`."""
    stream.batch_size = batch_size
    return DataLoader(stream, batch_size, collate_fn=_SkippingCollator(collator), **kwargs)
