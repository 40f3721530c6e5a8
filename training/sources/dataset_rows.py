"""Records of a data set of the library `datasets`: a folder, a file or an id of the Hub, complete or streamed."""

import re
import textwrap
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from math import gcd
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from datasets.exceptions import DatasetGenerationError
from datasets.packaged_modules.webdataset.webdataset import WebDataset
from pyarrow.parquet import read_schema

from ...files.digest import digest
from ...files.user_error import UserError
from .cache import cache_path
from .image_folder import ImageStore
from .readers import OTHER_FORMATS, READERS, code_digest, find_reader
from .record import Record
from .record_forms import is_given, make_record
from .record_table import RecordTable, save_records
from .tar_shards import SHARD_IMAGES, TextShards, make_shard_record


# The builder of `datasets` that reads a file.
BUILDERS = {".parquet": "parquet", ".arrow": "arrow", ".tar": "webdataset"}
CONVERSATION_COLUMNS = ("conversations", "messages")
IMAGE_COLUMNS = ("image", "images")
BINARY = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
NUM_ROWS = 1000
SHUFFLE_BUFFER = 1000  # rows, whose images are not decoded
NUM_OPEN_SHARDS = 10


def is_dataset(path: str) -> bool:
    """
    Whether `datasets` reads the data, and no reader of data files does: a folder, a file of one of its formats, or an
    id of the Hub, which may contain dots.

    Raises:
        UserError: It is a file of another format.
    """
    if find_reader(Path(path)) is not None:
        return False
    if Path(path).is_file() and Path(path).suffix not in BUILDERS:
        formats = "; ".join([*(reader.description for reader in READERS), OTHER_FORMATS])
        raise UserError(f"{path} has no supported data format: {formats}.")
    return True


def check_dataset(path: str) -> None:
    """Raises a `UserError` if the path of a data set is neither here nor can be an id of the Hub."""
    folder = Path(path)
    if not folder.exists() and (folder.suffix in BUILDERS or not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", path)):
        raise UserError(f"There is no data set {path}: it is neither a file or folder here nor an id of the Hub.")


def _load(path: str, config: str | None, split: str, streaming: bool) -> Any:
    check_dataset(path)
    folder = Path(path)
    if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
        rows = datasets.load_from_disk(path)
        if isinstance(rows, datasets.DatasetDict):
            if split not in rows:
                raise UserError(
                    f"The data set {path} has no split {split!r}; its splits are {', '.join(map(str, rows))}."
                )
            rows = rows[split]
        return rows.to_iterable_dataset(num_shards=max(1, len(rows.data.to_batches()))) if streaming else rows
    arguments: dict[str, Any] = {"path": path, "name": config}
    if folder.is_file():
        arguments = {"path": BUILDERS[folder.suffix], "data_files": path}
    builder = datasets.load_dataset_builder(**arguments)
    if isinstance(builder, WebDataset):
        # Other programs have the rows with parsed JSON in the default cache.
        builder: Any = datasets.load_dataset_builder(**arguments, cache_dir=str(cache_path("shards")))
        builder.__class__ = TextShards
    if streaming:
        return builder.as_streaming_dataset(split=split)
    builder.download_and_prepare()
    return builder.as_dataset(split=split)


def _find_broken_file(path: str) -> Path | None:
    """Returns the first `.parquet` file of a folder that cannot be read or has other columns than the first file."""
    columns = None
    for file in sorted(Path(path).rglob("*.parquet")) if Path(path).is_dir() else []:
        try:
            names = read_schema(file).names
        except (OSError, pa.ArrowException):
            return file
        columns = names if columns is None else columns
        if names != columns:
            return file
    return None


@contextmanager
def _explain_errors(path: str) -> Iterator[None]:
    """Names the data set, and the file if it is broken, in the errors of `datasets`, which hide the cause of some."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # including an `OSError` of the Hub or of Arrow, which may name no file
        is_general = type(error) is DatasetGenerationError
        cause = error.__cause__ if is_general and error.__cause__ is not None else error
        reason = textwrap.shorten(str(cause) or type(cause).__name__, 400)
        broken = _find_broken_file(path)
        place = "" if broken is None else f", because of {broken}"
        raise UserError(f"The data set {path} cannot be loaded{place}: {reason}") from error


def load_rows(path: str, config: str | None = None, split: str = "train", streaming: bool = False) -> Any:
    """
    Loads the rows.

    Returns:
        A `datasets.Dataset`, or a `datasets.IterableDataset` if streaming.

    Raises:
        UserError: There is no such data set, configuration or split, or it has no conversations.
    """
    with _explain_errors(path):
        rows = _load(path, config, split, streaming)
        names = rows.column_names or list(next(iter(rows), {}))
    if not set(names) & {*CONVERSATION_COLUMNS, "json", "txt"}:
        raise UserError(
            f"The data set {path} has no conversations: its columns are {', '.join(names) or 'none'}, but one must be "
            "conversations, as in LLaVA's JSON, or messages, as in a chat; in tar shards, each NAME.jpg has a "
            "NAME.json with one of them or a NAME.txt with a caption."
        )
    unread = [name for name, feature in (rows.features or {}).items() if _holds_images(feature)]
    if unread and not _image_columns(names):
        wanted = (
            ", ".join(f".{suffix}" for suffix in SHARD_IMAGES) if "__key__" in names else " or ".join(IMAGE_COLUMNS)
        )
        raise UserError(
            f"The data set {path} has images in {', '.join(map(repr, unread))}, which is not read: rename it to "
            f"{wanted}, or remove it if the conversations are without images."
        )
    return rows


def _holds_images(feature: Any) -> bool:
    """Whether a column contains images: as such, or as bytes."""
    if isinstance(feature, datasets.List | datasets.LargeList):
        return _holds_images(feature.feature)
    if isinstance(feature, dict):
        return "bytes" in feature
    return isinstance(feature, datasets.Image)


def _image_columns(names: list[str]) -> list[str]:
    shard = [name for name in names if name.lower() in SHARD_IMAGES]
    return shard if "__key__" in names else [name for name in IMAGE_COLUMNS if name in names]


def _has_content(image: Any) -> bool:
    if isinstance(image, dict) and "bytes" in image:
        return image["bytes"] is not None or is_given(image.get("path"))
    return is_given(image)


def _row_images(row: dict, columns: list[str]) -> list:
    """Returns the images of a row without null values: an image is named by its position in this list."""
    fields = [field if isinstance(field, list) else [field] for field in (row[column] for column in columns)]
    return [image for field in fields for image in field if _has_content(image)]


def _to_record(row: dict, columns: list[str], images: list, number: int | str) -> Record:
    """Returns the record of a row; `number` identifies it if it has no id."""
    if "__key__" in row:
        return make_shard_record(row, columns, images)
    value = {name: field for name, field in row.items() if name not in columns}
    return make_record({**value, "image": images}, number)


def _without_bytes(images: pa.Array) -> pa.Array:
    """Replaces the bytes of images by true, or by null if there are none, without reading them."""
    kind = images.type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        content, paths = images.field("bytes"), pa.nulls(len(images), pa.string())
        if kind.get_field_index("path") >= 0:
            paths = images.field("path")
    elif any(is_kind(kind) for is_kind in BINARY):
        content, paths = images, pa.nulls(len(images), pa.string())
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        first, last = images.offsets[0].as_py(), images.offsets[-1].as_py()
        values = _without_bytes(images.values.slice(first, last - first))
        offsets = pa.array([offset - first for offset in images.offsets.to_pylist()], images.offsets.type)
        return type(images).from_arrays(offsets, values, mask=images.is_null())
    else:
        return images
    has_bytes = pa.array(np.ones(len(content), bool), mask=content.is_null().to_numpy(zero_copy_only=False))
    return pa.StructArray.from_arrays([has_bytes, paths], ["bytes", "path"], mask=images.is_null())


def _place_images(images: list, place: str) -> list:
    """Returns the names of a row's images: the path of an image without bytes, else its position in the data set."""
    names = []
    for number, image in enumerate(images):
        if isinstance(image, dict) and "bytes" in image:
            names.append(f"{place}{number}" if image["bytes"] else image.get("path"))
        else:
            names.append(image)
    return names


class DatasetImages(ImageStore):
    """
    The images of a data set: in its rows, by `row ROW, image NUMBER`, or files in a folder.

    Args:
        rows (`datasets.Dataset`):
            The data set.
        path (`str`):
            Its name in errors.
        folder ([`ImageStore`], *optional*):
            Store of the image files that rows name by paths.
    """

    PLACE = re.compile(r"row (\d+), image (\d+)")

    def __init__(self, rows: datasets.Dataset, path: str, folder: ImageStore | None):
        self.path, self.folder = path, folder
        self.root = Path(path) if folder is None else folder.root
        self.columns = _image_columns(rows.column_names)
        self._rows: Any = rows.select_columns(self.columns).with_format("arrow")

    def _find_bytes(self, name: str) -> bytes | None:
        place = self.PLACE.fullmatch(name)
        if place is None:
            return None
        row, number = map(int, place.groups())
        image = _row_images(self._rows[row].to_pylist()[0], self.columns)[number]
        return image["bytes"] if isinstance(image, dict) else image

    def find(self, name: str) -> Any:
        content = self._find_bytes(name)
        if content is not None:
            return content
        if self.folder is None:
            raise ValueError(f"{name} is a path, and the source has no image_folder")
        return self.folder.find(name)

    def find_problem(self, name: str) -> str | None:
        if self.PLACE.fullmatch(name):
            return None
        if self.folder is None:
            return f"its image is the path {name}, and the source has no image_folder"
        return self.folder.find_problem(name)

    def state(self, name: str) -> str:
        # The key of the records depends on the content of the rows.
        return name if self.folder is None or self.PLACE.fullmatch(name) else self.folder.state(name)

    def identity(self, name: str) -> str:
        content = self._find_bytes(name)
        return name if content is None else digest(content)

    def describe(self, name: str) -> str:
        is_place = self.folder is None or self.PLACE.fullmatch(name) is not None
        return f"{self.path}, {name}" if is_place else self.folder.describe(name)


def _read_rows(rows: Any, columns: list[str], path: str) -> Iterator[dict]:
    """Reads the rows without the bytes of their images."""
    rows = rows.with_format("arrow")
    for first in range(0, len(rows), NUM_ROWS):
        with _explain_errors(path):
            # Not joined, because an array has at most 2 GiB of images.
            batches = rows[first : first + NUM_ROWS].to_batches()
        for batch in batches:
            for column in columns:
                index = batch.schema.get_field_index(column)
                batch = batch.set_column(index, column, _without_bytes(batch.column(index)))
            yield from batch.to_pylist()


def _iterate_records(rows: Any, path: str) -> Iterator[Record]:
    columns = _image_columns(rows.column_names)
    for number, row in enumerate(_read_rows(rows, columns, path)):
        images = _place_images(_row_images(row, columns), f"row {number}, image ")
        yield _to_record(row, columns, images, number)


def read_dataset(
    path: str, config: str | None, split: str, folder: ImageStore | None
) -> tuple[RecordTable, DatasetImages]:
    """
    Returns the records of a data set, without the bytes of their images, and its images.

    Raises:
        UserError: As for [`load_rows`], or it is empty.
    """
    rows = load_rows(path, config, split)
    if not len(rows):
        raise UserError(f"The data set {path} has no row.")
    key = digest(rows._fingerprint.encode(), code_digest().encode())
    return save_records(key, _iterate_records(rows, path), path), DatasetImages(rows, path, folder)


def _number(rows: Any, shard: int) -> Iterator[tuple[int | str, dict]]:
    """Yields the rows of a shard, each with an identifier that is the same in every order: shard and row number."""
    # `iter` reads all rows; `__iter__` would divide them among the workers again.
    for number, batch in enumerate(rows.shard(rows.num_shards, shard).iter(batch_size=1)):
        place = number if rows.num_shards == 1 else f"shard {shard}, row {number}"
        yield place, {name: values[0] for name, values in batch.items()}


def _interleave(rows: Any, shards: Sequence[int], generator: np.random.Generator) -> Iterator[tuple[int | str, dict]]:
    """Yields the numbered rows of shards in a random order, in turn from several of them."""
    waiting = generator.permutation(shards).tolist()
    opened: deque[Iterator[tuple[int | str, dict]]] = deque()
    while waiting or opened:
        if waiting and len(opened) < NUM_OPEN_SHARDS:
            opened.append(_number(rows, waiting.pop()))
            continue
        shard = opened.popleft()
        for row in islice(shard, 1):
            yield row
            opened.append(shard)


def _shuffle(rows: Iterator[Any], generator: np.random.Generator) -> Iterator[Any]:
    """
    Yields the rows in a random order, mixed within a buffer.

    `IterableDataset.shuffle` is not used: it reads shards with threads, too, and therefore sleeps 5 s in each worker
    whenever an iteration ends or is abandoned (`SLEEP_TIME_ON_THREADS_SHUTDOWN` in `datasets` 5).
    """
    buffer: list[Any] = []
    for row in rows:
        buffer.append(row)
        if len(buffer) == SHUFFLE_BUFFER:
            place = int(generator.integers(SHUFFLE_BUFFER))
            buffer[place], buffer[-1] = buffer[-1], buffer[place]
            yield buffer.pop()
    yield from (buffer[place] for place in generator.permutation(len(buffer)))


class DatasetStream:
    """
    Records of a data set that is read from its start to its end, repeatedly.

    Args:
        path (`str`), config (`str`, *optional*), split (`str`):
            As for [`load_rows`].
    """

    def __init__(self, path: str, config: str | None, split: str):
        self.path = path
        rows = load_rows(path, config, split, streaming=True)
        self.rows = rows.decode(False)
        self.columns = _image_columns(rows.column_names or list(next(iter(rows))))

    def _to_record(self, row: dict, number: int | str) -> Record:
        images = _row_images(row, self.columns)
        for place, image in enumerate(images):
            if isinstance(image, dict) and image.get("bytes") is None and is_given(image.get("path")):
                images[place] = image["path"]
            elif isinstance(image, bytes):
                images[place] = {"bytes": image, "path": None}
            elif isinstance(image, dict):
                images[place] = {"path": None, **image}
        return _to_record(row, self.columns, images, number)

    def read(self, seed: int, epoch: int, reader: int, num_readers: int) -> Iterator[Record]:
        """
        Reads one reader's share of an epoch. Shards (files) are divided into as many equal groups as possible, and
        the readers of a group use its rows in turn: otherwise, some rows would be used more often than others.

        Args:
            seed (`int`), epoch (`int`):
                Decide the order.
            reader (`int`), num_readers (`int`):
                Index of this reader, and number of readers, over all processes and their workers.
        """
        num_groups = gcd(self.rows.num_shards, num_readers)
        shards = range(reader % num_groups, self.rows.num_shards, num_groups)
        generator = np.random.default_rng([seed, epoch])
        rows = _shuffle(_interleave(self.rows, shards, generator), generator)
        with _explain_errors(self.path):
            for number, row in islice(rows, reader // num_groups, None, num_readers // num_groups):
                yield self._to_record(row, number)
