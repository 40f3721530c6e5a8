"""
The settings and files that the features in a cache depend on. Features are used only if all of these are equal.

```
FOLDER/                            `teacher_cache` of a recipe
  RATIO-GRID-DIGEST/               the features of some teachers for one way to make images square
    contents.json                  CONTENTS_FILE: these settings and digests of files, written first
    features-DIGEST.safetensors    features of some hundred images, each file complete or absent
    index.safetensors              INDEX_FILE: file and row of each image, written last
```
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ...files.atomic import read_json, write_json
from ...files.digest import digest
from ...files.user_error import UserError
from ..teachers.config import TeacherConfig
from ..teachers.grids import matched_shape
from ..teachers.teacher import Teacher
from .weights import weights_digest


CONTENTS_FILE = "contents.json"
INDEX_FILE = "index.safetensors"
STORAGES = ("int8", "bfloat16")
FORMAT = 2  # of the files
STRETCH = "stretch"
TILE_FIELDS = ("image_grid_pinpoints", "tile_size")
# Fields of a teacher that do not affect its features: the checkpoint is represented by the digest of its files.
NAMES = ("checkpoint", "name")


@dataclass(frozen=True)
class Squares:
    """
    The squares of an image that all teachers see.

    Args:
        image_aspect_ratio (`str`):
            How an image becomes a square: `pad`, `crop` or, if the student's images have tiles, `stretch`.
        color (`list[int]`, *optional*):
            Colour of the padding; `None` if nothing is padded.
        side (`int`):
            Resolution: the largest of all teachers.
        image_grid_pinpoints (`list[list[int]]`, *optional*), tile_size (`int`, *optional*):
            Arguments of [`cut_tiles`], if teachers see all tiles of an image.
    """

    image_aspect_ratio: str
    color: list[int] | None
    side: int
    image_grid_pinpoints: list[list[int]] | None = None
    tile_size: int | None = None

    @classmethod
    def of(cls, image_processor: Any, side: int, distill_tiles: bool = True) -> "Squares":
        """
        Describes the squares that an image processor of the student makes for teachers of this size: with
        `distill_tiles` every tile, otherwise whole pictures.
        """
        pinpoints = image_processor.image_grid_pinpoints
        if pinpoints is not None:
            return cls(STRETCH, None, side, *((pinpoints, image_processor.tile_size) if distill_tiles else ()))
        ratio = image_processor.image_aspect_ratio
        color = [int(255 * mean) for mean in image_processor.image_mean] if ratio == "pad" else None
        return cls(ratio, color, side)

    def describe(self) -> dict[str, Any]:
        """Its fields, without those that only tiles have: the folders of other squares keep their names."""
        return {name: value for name, value in asdict(self).items() if name not in TILE_FIELDS or value is not None}


@dataclass(frozen=True)
class CachedFeatures:
    """
    Everything that a teacher's features depend on, and their shape.

    Args:
        name (`str`), checkpoint (`str`):
            Name and checkpoint in the recipe.
        weights (`str`):
            Digest of the checkpoint's files.
        options (`dict`):
            The other fields of its [`TeacherConfig`], as given in the recipe.
        image_size (`int`), grid (`list[int]`):
            Image size and grid of the teacher.
    """

    name: str
    checkpoint: str
    weights: str
    options: dict[str, Any]
    image_size: int
    grid: list[int]

    @classmethod
    def of(cls, config: TeacherConfig, teacher: Teacher) -> "CachedFeatures":
        """Describes a loaded teacher."""
        grid = list(teacher.grid)
        return cls(
            teacher.name, config.checkpoint, weights_digest(config), options_of(config), teacher.image_size, grid
        )

    @property
    def dtype(self) -> torch.dtype:
        """Precision in which the teacher computes its features."""
        return getattr(torch, self.options["dtype"])


def options_of(config: TeacherConfig) -> dict[str, Any]:
    """Returns the fields of a teacher that its features depend on, except for its checkpoint."""
    return {name: value for name, value in asdict(config).items() if name not in NAMES}


@dataclass(frozen=True)
class Contents:
    """
    Everything that the features in a subfolder of a cache depend on.

    Args:
        storage (`str`):
            `int8` or `bfloat16`.
        squares ([`Squares`]):
            The images that teachers receive.
        student_grid (`int`), grid_matching (`str`):
            Arguments of [`match_grid`].
        teachers (`list[CachedFeatures]`):
            The teachers, in the order of their features.
    """

    storage: str
    squares: Squares
    student_grid: int
    grid_matching: str
    teachers: list[CachedFeatures]

    @classmethod
    def read(cls, folder: Path) -> "Contents":
        """Reads the file of a subfolder; raises a `UserError` if it is damaged."""
        path = folder / CONTENTS_FILE
        values = read_json(path)
        try:
            values["squares"] = Squares(**values["squares"])
            values["teachers"] = [CachedFeatures(**teacher) for teacher in values["teachers"]]
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error}): remove its folder and run `hawaii cache` again.") from error

    def write(self, folder: Path) -> None:
        """Writes the file of a subfolder."""
        write_json(folder / CONTENTS_FILE, asdict(self))

    @property
    def folder_name(self) -> str:
        """Name of the subfolder; it does not depend on the names and paths of teachers."""
        teachers = [{**asdict(teacher), **dict.fromkeys(NAMES)} for teacher in self.teachers]
        fields = {**asdict(self), "squares": self.squares.describe(), "teachers": teachers}
        values = json.dumps({**fields, "format": FORMAT}, sort_keys=True)
        key = digest(values.encode())[:12]
        return f"{self.squares.image_aspect_ratio}-{self.student_grid}x{self.student_grid}-{key}"

    def shape_of(self, teacher: CachedFeatures) -> tuple[int, int]:
        """Returns cells and channels of a teacher's features in the cache."""
        height, width, channels = teacher.grid
        return matched_shape(height, width, channels, self.student_grid, self.grid_matching)


@dataclass(frozen=True)
class Needed:
    """
    The features that a stage needs from a cache.

    Args:
        teachers (`Sequence[TeacherConfig]`), weights (`Sequence[str]`):
            Its teachers, and the digest of each one's files.
        image_processor (image processor):
            The student's.
        student_grid (`int`), grid_matching (`str`):
            Arguments of [`match_grid`].
        distill_tiles (`bool`, *optional*, defaults to `True`):
            Whether the teachers see every tile, or only whole pictures, which a cache of tiles has as well.
    """

    teachers: Sequence[TeacherConfig]
    weights: Sequence[str]
    image_processor: Any
    student_grid: int
    grid_matching: str
    distill_tiles: bool = True

    def choose(self, contents: Contents) -> list[int]:
        """
        Returns the indices of the stage's teachers in a subfolder.

        Raises:
            UserError: its features are not the ones that the stage needs. The message names the first difference.
        """
        indices = [self._find(contents, *wanted) for wanted in zip(self.teachers, self.weights)]
        side = max(contents.teachers[index].image_size for index in indices)
        squares = Squares.of(self.image_processor, side, self.distill_tiles)
        has_tiles = [each.image_aspect_ratio == STRETCH for each in (contents.squares, squares)]
        if has_tiles[0] != has_tiles[1]:
            there, here = ("have tiles" if each else "are one square" for each in has_tiles)
            raise UserError(f"images {there} there and {here} here")
        pairs: dict[str, tuple] = {
            "image_aspect_ratio": (contents.squares.image_aspect_ratio, squares.image_aspect_ratio),
            "the colour of the padding": (contents.squares.color, squares.color),
            "the side of the squares that teachers share": (contents.squares.side, side),
            "the side of the student's grid": (contents.student_grid, self.student_grid),
            "grid_matching": (contents.grid_matching, self.grid_matching),
        }
        if squares.image_grid_pinpoints is not None:
            for name in TILE_FIELDS:
                pairs[name] = (getattr(contents.squares, name), getattr(squares, name))
        for what, (there, here) in pairs.items():
            if there != here:
                raise UserError(f"{what} is {there} there and {here} here")
        return indices

    @staticmethod
    def _find(contents: Contents, config: TeacherConfig, weights: str) -> int:
        """Returns the index of a teacher; raises a [`UserError`] with the difference to the most similar one."""
        options, differences = options_of(config), {}
        for index, teacher in enumerate(contents.teachers):
            different = [name for name in options if teacher.options.get(name) != options[name]]
            if teacher.weights == weights and not different:
                return index
            is_named = config.name == teacher.name
            rank = (teacher.weights != weights, not is_named, len(different))
            if teacher.weights != weights:
                differences[rank] = (
                    f"the files of teacher {config.name} ({config.checkpoint}) differ from those of "
                    f"{teacher.name} ({teacher.checkpoint})"
                )
            else:
                name = different[0]
                there, here = teacher.options.get(name), options[name]
                differences[rank] = f"{name} of teacher {config.name} is {there} there and {here} here"
        raise UserError(differences[min(differences)])
