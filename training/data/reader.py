"""Samples of single records: their images, for the student and for the teachers."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image

from ...configuration.tiles_hawaii import count_tiles
from ...files.digest import digest
from ...files.user_error import UserError, explain_errors
from ...processing.encoder_processor import EncoderProcessor
from ...processing.images_hawaii import open_image, read_image_size, to_planes
from ...processing.processing_hawaii import HawaiiProcessor
from ..sources.image_folder import ImageStore
from ..sources.record import Record, short_repr
from .conversations import clean_text


# Inputs of the teachers in a batch: the shared square images, or features from a cache.
TEACHER_INPUTS = ("teacher_images", "teacher_features")


class FeaturesError(UserError):
    """
    The cache has no features of an image, or damaged ones. It is raised even if bad records are skipped, because the
    image is good.
    """


class FeatureReader(Protocol):
    """Reads the features of the squares of a record's image from a cache, see [`FeatureCache`]."""

    folder: Path

    def read(self, content: Path | bytes, num_squares: int) -> dict | None: ...

    def blank(self) -> dict: ...


def join(parts: list) -> Any:
    """Concatenates tensors, or the tensors under each key of equal dictionaries."""
    if isinstance(parts[0], dict):
        return {name: join([part[name] for part in parts]) for name in parts[0]}
    return torch.cat(parts)


def teacher_image(square: Image.Image, size: int) -> torch.Tensor:
    """Resizes a square image for the teachers: `(3, size, size)`, uint8."""
    return to_planes(square.resize((size, size), Image.Resampling.BICUBIC))


class RecordReader(ABC):
    """
    Makes samples of records.

    Args:
        images (`ImageStore`, *optional*):
            Store of the images; records of a stream may contain their images.
        processor (`HawaiiProcessor` or `EncoderProcessor`):
            Squares and normalises images; tokenizes conversations.
        teacher_image_size (`int`, *optional*):
            Side of the uint8 image that all teachers share; no image is made for them if not given.
        feature_cache ([`FeatureReader`], *optional*):
            Has the teachers' features of every image.
        distill_tiles (`bool`, *optional*, defaults to `True`):
            Whether teachers see every tile of an image, or only the whole image; without tiles there is no difference.
    """

    def __init__(
        self,
        images: ImageStore | None,
        processor: HawaiiProcessor | EncoderProcessor,
        teacher_image_size: int | None = None,
        feature_cache: FeatureReader | None = None,
        distill_tiles: bool = True,
    ):
        self.images = images
        self.processor = processor
        self.teacher_image_size = teacher_image_size
        self.feature_cache = feature_cache
        self.distill_tiles = distill_tiles

    @abstractmethod
    def make_sample(self, record: Record) -> dict:
        """Returns the sample of a record; raises a `UserError` if it cannot be read."""

    def split(self, record: Record) -> list[Record]:
        """Splits a record of a stream into records of one sample each; by default, a record is one sample."""
        return [record]

    def identify(self, image: Any) -> str:
        """Returns a text that identifies an image, see [`ImageStore.identity`]."""
        if isinstance(image, dict):
            return digest(image["bytes"])
        return image if self.images is None else self.images.identity(image)

    def read_content(self, image: Any) -> Path | bytes:
        """
        Returns the file of a record's image, or its bytes, if they are in an archive or in the record.

        Raises:
            UserError: The archive has changed or is damaged.
        """
        if not isinstance(image, str):
            return image["bytes"]
        assert self.images is not None  # otherwise the record has a problem
        with explain_errors(f"its image {self.images.describe(image)} cannot be read"):
            return self.images.find(image)

    def _describe_image(self, image: Any) -> str:
        if isinstance(image, str):
            return image if self.images is None else self.images.describe(image)
        return image["path"] or "in its row"

    @contextmanager
    def _explain_image(self, image: Any) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            raise UserError(f"its image {self._describe_image(image)} cannot be read ({error})") from error

    def _read_image(self, image: Any, content: Path | bytes) -> dict[str, torch.Tensor]:
        """Returns the tensors of [`_read_images`] for one image."""
        with self._explain_image(image):
            opened = open_image(content)
            result = dict(self.processor.image_processor(opened, return_tensors="pt"))
            if "image_sizes" in result:
                result["num_tiles"] = torch.tensor([len(result["pixel_values"])])
            if self.teacher_image_size is not None:
                result["teacher_images"] = self._make_teacher_images(opened)
        return result

    def _read_images(self, record: Record) -> dict[str, Any]:
        """
        Returns:
            `dict` with `pixel_values` of shape `(num_tiles, 3, image_size, image_size)`, one square per image or its
            tiles; with tiles, `image_sizes` of shape `(num_images, 2)` and `num_tiles` of shape `(num_images,)`; with
            a `teacher_image_size`, `teacher_images`, uint8, of shape
            `(num_squares, 3, teacher_image_size, teacher_image_size)`, the squares that teachers see; with a
            `feature_cache`, their `teacher_features`; empty if the record has no image.
        """
        contents = [self.read_content(image) for image in record.images]
        if not contents:
            return {}
        result = join([self._read_image(image, content) for image, content in zip(record.images, contents)])
        if self.feature_cache is not None:
            features = []
            num_squares = [1] * len(contents)
            if self.distill_tiles and "num_tiles" in result:
                num_squares = result["num_tiles"].tolist()
            for image, content, number in zip(record.images, contents, num_squares):
                try:
                    features.append(self.feature_cache.read(content, number))
                except UserError as error:
                    raise FeaturesError(str(error).removesuffix(".")) from error
                if features[-1] is None:
                    raise FeaturesError(
                        f"the cache {self.feature_cache.folder} has no features of its image "
                        f"{self._describe_image(image)}, or the image has changed: run `hawaii cache` again, which "
                        "computes the missing features"
                    )
            result["teacher_features"] = join(features)
        return result

    def read_teacher_images(self, image: Any, content: Path | bytes) -> torch.Tensor:
        """Reads the squares that all teachers share; `teacher_images` of [`_read_images`]."""
        with self._explain_image(image):
            return self._make_teacher_images(open_image(content))

    def _make_teacher_images(self, image: Image.Image) -> torch.Tensor:
        size = self.teacher_image_size
        assert size is not None
        squares = self.processor.image_processor.square_images(image, size, Image.Resampling.BICUBIC)
        if not self.distill_tiles:
            squares = squares[:1]
        return torch.stack([teacher_image(square, size) for square in squares])

    def read_image_sizes(self, record: Record) -> list[tuple[int, int]] | None:
        """
        Returns the height and width of each image of a record, without reading its pixels; `None` if each image is one
        square, for which they do not matter.

        Raises:
            UserError: An image is broken.
        """
        if self.processor.image_processor.image_grid_pinpoints is None:
            return None
        sizes = []
        for image in record.images:
            content = self.read_content(image)
            with self._explain_image(image):
                sizes.append(read_image_size(content))
        return sizes

    def count_squares(self, image: Any, content: Path | bytes) -> int:
        """
        Number of squares of an image that teachers see, without reading its pixels.

        Raises:
            UserError: The image is broken.
        """
        images = self.processor.image_processor
        if images.image_grid_pinpoints is None or not self.distill_tiles:
            return 1
        with self._explain_image(image):
            (number,) = count_tiles([read_image_size(content)], images.image_grid_pinpoints, images.tile_size)
        return number

    def count_image_tokens(self, record: Record) -> list[int] | None:
        """
        Returns the number of tokens of each image of a record, without reading its pixels; `None` if each image is one
        square.

        Raises:
            UserError: An image is broken.
        """
        sizes, processor = self.read_image_sizes(record), self.processor
        if sizes is None:
            return None
        assert isinstance(processor, HawaiiProcessor)  # there are no tiles without text
        return processor.count_image_tokens(sizes)

    def _find_problem(self, record: Record) -> str | None:
        """Returns the reason why the record cannot be used, without reading its images; image data sets check less."""
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
        return self._find_image_problem(record.images)

    def _find_image_problem(self, images: Iterable) -> str | None:
        for image in images:
            if isinstance(image, dict) and isinstance(image.get("bytes"), bytes):
                continue  # an image of a stream
            if not isinstance(image, str) or "\0" in image:
                return f"its image is {short_repr(image)}, not a path"
            if self.images is None:
                return f"its image is the path {image}, and the source has no image_folder"
            problem = self.images.find_problem(image)
            if problem is not None:
                return problem
        return None
