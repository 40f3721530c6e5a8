"""One source of training data: a file, a folder or a data set of the Hub, with its images."""

from dataclasses import dataclass
from pathlib import Path

from ...files.user_error import UserError
from .dataset_rows import DatasetStream, check_dataset, is_dataset, read_dataset
from .image_folder import ImageStore, find_image_folder, open_image_folder
from .readers import check_data_file, find_reader, read_table
from .record_table import RecordTable


@dataclass(frozen=True)
class Source:
    """
    Args:
        path (`str`):
            A data file of a format in [`READERS`], or data that `datasets` loads: a folder of `save_to_disk`, a folder
            of parquet, Arrow or JSON-lines files or of tar shards, one such file, or an id of the Hub.
        image_folder (`str`, *optional*):
            Folder, zip or tar that image paths are relative to; `archive.zip/FOLDER` is a folder in an archive. Not
            needed if a data set contains its images.
        config (`str`, *optional*):
            Configuration of a data set.
        split (`str`, *optional*, defaults to `"train"`):
            Its split.
        weight (`float`, *optional*):
            Share of the samples, relative to the weights of the other sources. Without weights every record of all
            sources is used once per epoch.
        streaming (`bool`, *optional*, defaults to `False`):
            Whether a data set is read while it is used, without a copy in the cache.

    Raises:
        UserError: A value is invalid, or a file of records is to be streamed.
    """

    path: str
    image_folder: str | None = None
    config: str | None = None
    split: str = "train"
    weight: float | None = None
    streaming: bool = False

    def __post_init__(self):
        if not self.path:
            raise UserError("path is missing; name a data file, a folder or an id of the Hub.")
        if self.weight is not None and not 0 < self.weight < float("inf"):
            raise UserError(f"weight is {self.weight}; it must be above 0.")
        if not self.is_dataset:
            if self.streaming:
                raise UserError(
                    "streaming is true, but only data sets are streamed; leave it out, since the records of a file "
                    "are mapped into memory."
                )
            if self.config is not None or self.split != "train":
                raise UserError(
                    "config and split belong to data sets; leave them out, since a data file has all of its records."
                )
            if not self.image_folder:
                raise UserError("there is no image_folder; name the folder that image paths are relative to.")

    @property
    def is_dataset(self) -> bool:
        """Whether `datasets` reads it; decided by the path alone."""
        return find_reader(Path(self.path)) is None and is_dataset(self.path)

    def check_exists(self) -> None:
        """Raises a `UserError` if the data or the image folder is missing; reads neither."""
        if self.is_dataset:
            check_dataset(self.path)
        else:
            check_data_file(self.path)
        if self.image_folder:
            find_image_folder(self.image_folder)

    def open_images(self, follow_links: bool = True) -> ImageStore | None:
        """
        Returns the store of its image files: `image_folder` or, if not given, the folder of a local data set.

        Raises:
            UserError: There is no such folder or archive.
        """
        if self.image_folder:
            return open_image_folder(self.image_folder, follow_links)
        path = Path(self.path)
        return open_image_folder(str(path if path.is_dir() else path.parent), follow_links) if path.exists() else None

    def read(self, follow_links: bool = True) -> tuple[RecordTable, ImageStore]:
        """
        Returns all records, including those with a problem, and the store of their images.

        Raises:
            UserError: Either is missing, or the data cannot be read.
        """
        images = self.open_images(follow_links)
        if self.is_dataset:
            return read_dataset(self.path, self.config, self.split, images)
        assert images is not None  # checked above
        return read_table(self.path), images

    def stream(self) -> DatasetStream:
        """Returns the records of a data set in the order of reading."""
        return DatasetStream(self.path, self.config, self.split)
