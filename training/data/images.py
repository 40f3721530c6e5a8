"""What an encoder learns from without a language model: images alone."""

from pathlib import Path

import torch

from ...files.atomic import visible_files
from ...files.user_error import UserError
from ...processing.encoder_processor import EncoderProcessor
from .llava import teacher_image
from .records import RecordDataset, choose_share, image_paths, read_records


IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def find_images(folder: Path) -> list[str]:
    """
    The images under a folder, as paths relative to it, sorted: the same on every machine. What is hidden is left out,
    and folders that are links are not followed.
    """
    found = (path for path in visible_files(folder) if path.name.lower().endswith(IMAGE_SUFFIXES))
    return sorted(path.relative_to(folder).as_posix() for path in found)


class ImageDataset(RecordDataset):
    """
    Images, each once, however many records name it.

    Args:
        data_path (`str`, *optional*):
            LLaVA's JSON, of which nothing but the images is read; all images under `image_folder` if not given.
        image_folder, processor, bad_records:
            As for [`RecordDataset`].
        teacher_image_size (`int`):
            Side of the uint8 image that all teachers share.
        image_share (`float`, *optional*, defaults to 1.0):
            Share of the images that are learned from, see [`choose_share`].

    Raises:
        FileNotFoundError: the data file or the folder is missing.
        ValueError: there are no images, some cannot be used and are not to be skipped, or none is within the share.
    """

    processor: EncoderProcessor
    way_out = "set bad_records: skip"
    question = ""  # that is learned to be answered

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
            for path in image_paths(record):
                first.setdefault(path, {"id": record["id"], "image": path})
        if not first:
            raise UserError(f"None of the {len(self.records)} records of {data_path} has an image to learn from.")
        self.records = choose_share(list(first.values()), image_share, self.data_path)

    def _read_records(self) -> list[dict]:
        if self.names_images:
            return read_records(self.data_path)
        paths = find_images(self.image_folder)
        if not paths:
            raise UserError(
                f"There is no image in the folder {self.data_path}, nor in the folders in it: it holds no file that "
                f"ends in {', '.join(IMAGE_SUFFIXES)}."
            )
        return [{"id": path, "image": path} for path in paths]

    def _problem(self, record) -> str | None:
        if not isinstance(record, dict):
            return f"it is {record!r}, not a JSON object"
        return self._path_problem(image_paths(record))

    def _read(self, index: int) -> dict:
        """
        Returns:
            `dict` with `pixel_values` of shape `(1, 3, image_size, image_size)`, and `teacher_images`, uint8, of shape
            `(1, 3, teacher_image_size, teacher_image_size)`.

        Raises:
            ValueError: the image is broken.
        """
        squares = self._read_squares(image_paths(self.records[index]))
        teacher_images = torch.stack([teacher_image(square, self.teacher_image_size) for square in squares])
        return {"pixel_values": self._pixel_values(squares), "teacher_images": teacher_images}


def collate_images(samples: list[dict]) -> dict[str, torch.Tensor]:
    """
    Joins samples to a batch.

    Returns:
        `dict` with `pixel_values` and `teacher_images`, whose first dimension are all images of the batch; and
        `image_index` of shape `(num_images,)`, the sample of each image.
    """
    batch = {name: torch.cat([sample[name] for sample in samples]) for name in ("pixel_values", "teacher_images")}
    return {**batch, "image_index": torch.arange(len(samples))}
