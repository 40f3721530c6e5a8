"""The images of benchmarks: those that lmms-eval's tasks pass to a model, or those of a folder."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from ...files.digest import digest
from ...files.user_error import UserError
from ...processing.images_hawaii import RASTER_FORMATS
from .questions import data_from
from .task_files import check_data_folder, find_data_files, write_task_files


def _identity(image: Image.Image | str | Path) -> str:
    if not isinstance(image, Image.Image):
        return str(image)
    return digest(f"{image.mode} {image.size}".encode(), image.tobytes())


@dataclass
class ImageSource:
    """
    Args:
        name (`str`):
            Name of the benchmark.
        documents (`list[Callable[[], list]]`):
            Functions that return the images of one question or file.
    """

    name: str
    documents: list[Callable[[], list]]

    def images(self, advance: Callable[[], Any]) -> Iterator[Image.Image | str | Path]:
        """
        Yields each distinct image once and calls `advance` after each document.

        Raises:
            UserError: There are no images.
        """
        seen = set()
        for document in self.documents:
            for image in document():
                identity = _identity(image)
                if identity not in seen:
                    seen.add(identity)
                    yield image
            advance()
        if not seen:
            raise UserError(f"None of the {len(self.documents)} selected questions of {self.name} has an image.")


def spread(num_items: int, limit: int) -> list[int]:
    """Returns up to `limit` evenly spaced indices, because benchmarks are often sorted."""
    num_taken = min(num_items, limit)
    return [number * num_items // num_taken for number in range(num_taken)]


def folder_source(argument: str, limit: int) -> ImageSource:
    """
    Returns the images in a folder and its subfolders, ordered by name.

    Args:
        argument (`str`):
            `NAME=FOLDER`.
        limit (`int`):
            Maximum number of images.

    Raises:
        UserError: The argument is not `NAME=FOLDER`, or the folder does not exist or has no images.
    """
    name, equals, folder = argument.partition("=")
    if not (name and equals and folder):
        raise UserError(f"--images is {argument!r}; it must be NAME=FOLDER.")
    if not Path(folder).is_dir():
        raise UserError(f"{name} has no images: there is no folder {folder}.")
    formats = Image.registered_extensions()
    paths = sorted(
        path
        for path in Path(folder).rglob("*")
        if formats.get(path.suffix.lower()) in RASTER_FORMATS and path.is_file()
    )
    if not paths:
        raise UserError(f"{name} has no images: {folder} contains none that Pillow can read.")
    return ImageSource(name, [lambda path=paths[index]: [path] for index in spread(len(paths), limit)])


def _flatten(tasks: dict) -> Iterator[Any]:
    """Yields the tasks of a nested dictionary of groups."""
    for task in tasks.values():
        yield from _flatten(task) if isinstance(task, dict) else [task]


def _task_images(part: Any, row: int, folder: Path | None) -> list:
    """Returns the images of one question; `folder` has the data of the task if it is not on the Hub."""
    with data_from(folder):
        return part.doc_to_visual(part.eval_docs[row]) or []


def task_sources(
    names: Sequence[str],
    limit: int,
    output_dir: Path,
    data_file: str | None,
    data_folder: str | None,
    scratch: Path,
) -> list[ImageSource]:
    """
    Returns the images of tasks through lmms-eval, without a model.

    Args:
        names (`Sequence[str]`):
            Tasks of lmms-eval or of this package.
        limit (`int`):
            Maximum number of questions per task.
        output_dir (`Path`), data_file (`str`, *optional*), data_folder (`str`, *optional*):
            Location of the questions, as for [`evaluate`].
        scratch (`Path`):
            Empty folder that must exist until the images are read.

    Raises:
        UserError: A task does not exist, its questions could not be loaded, or lmms-eval is not installed.
    """
    data_files = find_data_files(names, output_dir, data_file)
    folder = None if data_folder is None else Path(data_folder)
    if folder is not None:
        check_data_folder(names, folder)
    try:
        from loguru import logger

        from ..lmms.worker import Tasks, cause_of
    except ImportError as error:
        raise UserError(f"The images of tasks need lmms-eval: pip install lmms-eval==0.7.3 ({error})") from error
    from lmms_eval.tasks import get_task_dict

    logger.disable("lmms_eval")
    tasks = Tasks(str(write_task_files(names, data_files, folder, scratch)))
    sources = []
    for name in names:
        manager = tasks.manager_of(name)
        try:
            with data_from(folder):
                parts = list(_flatten(get_task_dict([name], manager)))
                rows = [(part, row) for part in parts for row in range(len(part.eval_docs))]
        except Exception as error:  # a task may run any code and load any data
            cause = cause_of(error)
            raise UserError(f"The questions of {name} could not be loaded: {type(cause).__name__}: {cause}") from error
        chosen = [rows[index] for index in spread(len(rows), limit)]
        sources.append(ImageSource(name, [partial(_task_images, part, row, folder) for part, row in chosen]))
    return sources
