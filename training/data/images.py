"""Images without text, the data of an encoder that is trained without a language model."""

from collections.abc import Iterator
from typing import Any

import torch

from ...files.digest import digest
from ...files.user_error import UserError
from ...processing.encoder_processor import EncoderProcessor
from ..sources.image_folder import ImageStore, open_image_folder
from ..sources.readers import code_digest
from ..sources.record import Record
from ..sources.record_table import RecordTable, save_records
from ..sources.source import Source
from .reader import TEACHER_INPUTS, RecordReader, join
from .records import RecordDataset


IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


class NoImagesError(UserError):
    """None of the records has an image."""


class ImageReader(RecordReader):
    """Makes samples of the images of records; conversations are not read."""

    def _find_problem(self, record: Record) -> str | None:
        return self._find_image_problem(record.images) if record.is_readable else record.problem

    def split(self, record: Record) -> list[Record]:
        """Returns a record per image."""
        return [Record(record.id, (image,)) for image in record.images] if record.is_readable else [record]

    def make_sample(self, record: Record) -> dict:
        """Returns the images of [`RecordReader`] and `record_id`, as text for errors."""
        return {**self._read_images(record), "record_id": repr(record.id)}


class ImageDataset(ImageReader, RecordDataset):
    """
    Images, each once even if several records name it.

    Args:
        data_path (`str` or [`Source`], *optional*):
            Data, of which only the images are read; all images under `image_folder` if not given.
        image_folder, processor, kwargs:
            As for [`RecordDataset`].

    Raises:
        UserError: As for [`RecordDataset`], or there is no image.
    """

    processor: EncoderProcessor
    kind = "images"
    question = ""

    def __init__(
        self, data_path: str | Source | None, image_folder: str | None, processor: EncoderProcessor, **kwargs
    ):
        self.has_data_file = bool(data_path)
        super().__init__(data_path or Source(image_folder, image_folder), image_folder, processor, **kwargs)

    def _read_source(self, source: Source) -> tuple[RecordTable, ImageStore]:
        """Returns a record per image under the folder if there is no data file, in the same order on every machine."""
        if self.has_data_file:
            return super()._read_source(source)
        images = open_image_folder(source.path, self.follow_links)
        names = [name for name in images.names() if name.lower().endswith(IMAGE_SUFFIXES)]
        if not names:
            raise UserError(
                f"There is no image in the folder {self.data_path}, nor in its subfolders: no file name "
                f"ends in {', '.join(IMAGE_SUFFIXES)}."
            )
        records = [Record(name, (name,)) for name in names]
        key = digest("\0".join(names).encode(errors="backslashreplace"), code_digest().encode())
        return save_records(key, records, self.data_path), images

    def _check(self, records: RecordTable) -> RecordTable:
        good = super()._check(records)

        def unique_images() -> Iterator[Record]:
            seen = set()
            for record in good.without_messages():
                for name in record.images:
                    identity = self.images.identity(name)
                    if identity not in seen:
                        seen.add(identity)
                        yield Record(record.id, (name,))

        unused = b"" if good.indices is None else good.indices.tobytes()
        unique = save_records(digest(self._cheap_key(records).encode(), unused), unique_images(), self.data_path)
        if not len(unique):
            raise NoImagesError(f"None of the {len(good)} records of {self.data_path} has an image to learn from.")
        return unique


def collate_images(samples: list[dict]) -> dict:
    """
    Joins samples to a batch.

    Returns:
        `dict` with `pixel_values` and `teacher_images` or `teacher_features`, whose first dimension is all images of
        the batch; `image_index` of shape `(num_images,)`, the sample of each image; and `record_ids`, a list of text.
    """
    names = [name for name in ("pixel_values", *TEACHER_INPUTS) if name in samples[0]]
    batch: dict[str, Any] = {name: join([sample[name] for sample in samples]) for name in names}
    record_ids = [sample["record_id"] for sample in samples]
    return {**batch, "image_index": torch.arange(len(samples)), "record_ids": record_ids}
