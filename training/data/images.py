"""Images without text, the data of an encoder that is trained without a language model."""

import torch

from ...files.atomic import visible_files
from ...files.user_error import UserError
from ...processing.encoder_processor import EncoderProcessor
from .record import Record
from .records import RecordDataset


IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


class ImageDataset(RecordDataset):
    """
    Images, each once even if several records name it.

    Args:
        data_path (`str`, *optional*):
            Data file, of which only the images are read; all images under `image_folder` if not given.
        image_folder, processor, kwargs:
            As for [`RecordDataset`].

    Raises:
        UserError: As for [`RecordDataset`], or there is no image.
    """

    processor: EncoderProcessor
    kind = "images"
    question = ""

    def __init__(self, data_path: str | None, image_folder: str, processor: EncoderProcessor, **kwargs):
        self.has_data_file = bool(data_path)
        super().__init__(data_path or image_folder, image_folder, processor, **kwargs)

    def _read_records(self) -> list[Record]:
        """Returns a record per image under the folder if there is no data file, in the same order on every machine."""
        if self.has_data_file:
            return super()._read_records()
        images = [path for path in visible_files(self.image_folder) if path.suffix.lower() in IMAGE_SUFFIXES]
        if not images:
            raise UserError(
                f"There is no image in the folder {self.data_path}, nor in its subfolders: no file name "
                f"ends in {', '.join(IMAGE_SUFFIXES)}."
            )
        paths = sorted(image.relative_to(self.image_folder).as_posix() for image in images)
        return [Record(path, (path,)) for path in paths]

    def _check(self, records: list[Record]) -> list[Record]:
        good = super()._check(records)
        first = {}
        for record in good:
            for path in record.images:
                first.setdefault(path, Record(record.id, (path,)))
        if not first:
            raise UserError(f"None of the {len(good)} records of {self.data_path} has an image to learn from.")
        return list(first.values())

    def _find_problem(self, record: Record) -> str | None:
        return self._find_path_problem(record.images) if record.is_readable else record.problem

    def _read(self, index: int) -> dict:
        record = self.records[index]
        return {**self._read_images(record), "record_id": repr(record.id)}


def collate_images(samples: list[dict]) -> dict:
    """
    Joins samples to a batch.

    Returns:
        `dict` with `pixel_values` and `teacher_images`, whose first dimension is all images of the batch;
        `image_index` of shape `(num_images,)`, the sample of each image; and `record_ids`, a list of text.
    """
    batch = {name: torch.cat([sample[name] for sample in samples]) for name in ("pixel_values", "teacher_images")}
    record_ids = [sample["record_id"] for sample in samples]
    return {**batch, "image_index": torch.arange(len(samples)), "record_ids": record_ids}
