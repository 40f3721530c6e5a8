"""Images without text, the data of an encoder that is trained without a language model."""

from pathlib import Path

import torch

from ...files.atomic import visible_files
from ...files.user_error import UserError
from ...processing.encoder_processor import EncoderProcessor
from .conversation_dataset import teacher_image
from .record import Record
from .records import RecordDataset, choose_share


IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def find_images(folder: Path) -> list[str]:
    """
    Lists the images under a folder as relative paths, sorted so that the order is the same on every machine. Skips
    hidden files and does not follow links to folders.
    """
    found = (path for path in visible_files(folder) if path.name.lower().endswith(IMAGE_SUFFIXES))
    return sorted(path.relative_to(folder).as_posix() for path in found)


class ImageDataset(RecordDataset):
    """
    Images, each once even if several records name it.

    Args:
        data_path (`str`, *optional*):
            Data file, of which only the images are read; all images under `image_folder` if not given.
        image_folder, processor, bad_records:
            As for [`RecordDataset`].
        teacher_image_size (`int`):
            Side of the uint8 image that all teachers share.
        image_share (`float`, *optional*, defaults to 1.0):
            Share of the images to train on, see [`choose_share`].

    Raises:
        UserError: As for [`RecordDataset`], or there is no image, or none within the share.
    """

    processor: EncoderProcessor
    hint = "set bad_records: skip"
    question = ""

    def __init__(
        self,
        data_path: str | None,
        image_folder: str,
        processor: EncoderProcessor,
        teacher_image_size: int,
        bad_records: str = "error",
        image_share: float = 1.0,
    ):
        self.names_images = bool(data_path)
        super().__init__(data_path or image_folder, image_folder, processor, bad_records)
        self.teacher_image_size = teacher_image_size
        first = {}
        for record in self.records:
            for path in record.images:
                first.setdefault(path, Record(record.id, (path,)))
        if not first:
            raise UserError(f"None of the {len(self.records)} records of {data_path} has an image to learn from.")
        self.records = choose_share(list(first.values()), image_share, self.data_path)

    def _read_records(self) -> list[Record]:
        if self.names_images:
            return super()._read_records()
        paths = find_images(self.image_folder)
        if not paths:
            raise UserError(
                f"There is no image in the folder {self.data_path}, nor in its subfolders: no file name "
                f"ends in {', '.join(IMAGE_SUFFIXES)}."
            )
        return [Record(path, (path,)) for path in paths]

    def _problem(self, record: Record) -> str | None:
        return self._path_problem(record.images) if record.is_readable else record.problem

    def _read(self, index: int) -> dict:
        """
        Returns:
            `dict` with `pixel_values` of shape `(1, 3, image_size, image_size)`, and `teacher_images`, uint8, of shape
            `(1, 3, teacher_image_size, teacher_image_size)`.

        Raises:
            UserError: The image is broken.
        """
        squares = self._read_squares(self.records[index].images)
        teacher_images = torch.stack([teacher_image(square, self.teacher_image_size) for square in squares])
        return {"pixel_values": self._pixel_values(squares), "teacher_images": teacher_images}


def collate_images(samples: list[dict]) -> dict[str, torch.Tensor]:
    """
    Joins samples to a batch.

    Returns:
        `dict` with `pixel_values` and `teacher_images`, whose first dimension is all images of the batch; and
        `image_index` of shape `(num_images,)`, the sample of each image.
    """
    batch = {name: torch.cat([sample[name] for sample in samples]) for name in ("pixel_values", "teacher_images")}
    return {**batch, "image_index": torch.arange(len(samples))}
