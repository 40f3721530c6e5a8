"""The images that benchmarks ask about: those of lmms-eval's tasks, as a model is shown them, or of a folder."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from ...files.digest import digest
from ...files.user_error import UserError
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
            What it is called.
        documents (`list[Callable[[], list]]`):
            Each gives the images of one question, or of one file, when it is called.
    """

    name: str
    documents: list[Callable[[], list]]

    def images(self, advance: Callable[[], Any]) -> Iterator[Image.Image | str | Path]:
        """
        Each image once, however many questions are asked about it; `advance` is called after each document.

        Raises:
            ValueError: there is none.
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
            raise UserError(f"None of the {len(self.documents)} questions of {self.name} looked at has an image.")


def spread(num_items: int, limit: int) -> list[int]:
    """Indices of `limit` items, or of all where there are fewer, at even distances: a benchmark is often sorted."""
    num_taken = min(num_items, limit)
    return [number * num_items // num_taken for number in range(num_taken)]


def folder_source(argument: str, limit: int) -> ImageSource:
    """
    The images below a folder, in the order of their names.

    Args:
        argument (`str`):
            `NAME=FOLDER`.
        limit (`int`):
            Images at most.

    Raises:
        ValueError: it is not of that form, there is no such folder, or no image in it.
    """
    name, equals, folder = argument.partition("=")
    if not (name and equals and folder):
        raise UserError(f"--images is {argument!r}; it must be NAME=FOLDER.")
    if not Path(folder).is_dir():
        raise UserError(f"{name} has no images: there is no folder {folder}.")
    suffixes = Image.registered_extensions()
    paths = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in suffixes and path.is_file())
    if not paths:
        raise UserError(f"{name} has no images: {folder} holds none that Pillow reads.")
    return ImageSource(name, [lambda path=paths[index]: [path] for index in spread(len(paths), limit)])


def _parts(tasks: dict) -> Iterator[Any]:
    """The tasks of a task, of a group of them, or of groups of groups."""
    for task in tasks.values():
        yield from _parts(task) if isinstance(task, dict) else [task]


def _task_images(part: Any, row: int, folder: Path | None) -> list:
    """Those of one question of a task, whose data may lie in a folder."""
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
    The images of tasks, through lmms-eval, which no model is asked for.

    Args:
        names (`Sequence[str]`):
            Of lmms-eval's tasks or of this package's.
        limit (`int`):
            Questions looked at of each, at most.
        output_dir (`Path`), data_file (`str`, *optional*), data_folder (`str`, *optional*):
            Where questions lie, as for [`evaluate`].
        scratch (`Path`):
            An empty folder, to be kept until the images are read.

    Raises:
        ValueError: there is no such task, its questions cannot be had, or lmms-eval is not installed.
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
                parts = list(_parts(get_task_dict([name], manager)))
                rows = [(part, row) for part in parts for row in range(len(part.eval_docs))]
        except Exception as error:  # a task is a program, and its data may be anywhere
            cause = cause_of(error)
            raise UserError(f"The questions of {name} cannot be had: {type(cause).__name__}: {cause}") from error
        chosen = [rows[index] for index in spread(len(rows), limit)]
        sources.append(ImageSource(name, [partial(_task_images, part, row, folder) for part, row in chosen]))
    return sources
