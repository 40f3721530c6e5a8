"""Teachers whose features come from a cache: workers of the data loader read them, the trainer converts them."""

from pathlib import Path
from typing import Any

import torch

from ...files.digest import digest
from ...files.user_error import UserError
from ..data.processes import decide_once
from ..data.reader import join
from ..teachers.config import TeacherConfig
from .contents import CONTENTS_FILE, CachedFeatures, Contents, Needed
from .feature_files import FeatureFiles, square_key
from .quantization import Quantized, dequantize
from .weights import weights_digest


ADVICE = "run `hawaii cache RECIPE`, or leave out teacher_cache"

# Shapes: S squares, m cells, C channels.


class CachedTeacher:
    """
    A teacher whose model is neither loaded nor run.

    Args:
        features ([`CachedFeatures`]):
            Its description in the cache.
        name (`str`):
            Its name in the recipe.
        shape (`tuple[int, int]`):
            Cells and channels of its features in the cache.
        student_grid (`int`), grid_matching (`str`):
            Arguments of [`match_grid`] with which the features were stored.

    Attributes:
        grid (`tuple[int, int, int]`):
            Height, width and channels of the teacher's own features, before they were matched to the student's grid.
    """

    def __init__(
        self, features: CachedFeatures, name: str, shape: tuple[int, int], student_grid: int, grid_matching: str
    ):
        height, width, channels = features.grid
        self.name, self.image_size, self.dtype = name, features.image_size, features.dtype
        self.grid = (height, width, channels)
        self.cells = (height, width) if grid_matching == "learned" else (student_grid, student_grid)
        self.channels = shape[1]

    def __call__(self, features: dict[str, dict[str, torch.Tensor]]) -> torch.Tensor:
        """
        Converts stored features to the teacher's precision, on their device.

        Args:
            features (`dict[str, dict[str, torch.Tensor]]`):
                `teacher_features` of a batch.

        Returns:
            `torch.FloatTensor` of shape `(num_images, height, width, channels)` on the student's grid, which
            [`match_grid`] leaves unchanged; on the teacher's own for `learned` matching.
        """
        stored = features[self.name]
        values = dequantize(**stored, dtype=self.dtype) if "scale" in stored else stored["values"].to(self.dtype)
        return values.unflatten(1, self.cells)


class FeatureCache:
    """
    Reads the features of images.

    Args:
        folder (`Path`), contents ([`Contents`]):
            The subfolder and its description.
        indices (`list[int]`), configs (`list[TeacherConfig]`):
            The teachers to read: their numbers in the subfolder and their options in the recipe.

    Attributes:
        folder (`Path`):
            The subfolder.
        teachers (`list[CachedTeacher]`):
            The teachers in the order of the recipe.
    """

    def __init__(self, folder: Path, contents: Contents, indices: list[int], configs: list[TeacherConfig]):
        self.folder = folder
        self.files = FeatureFiles(folder, contents)
        self.indices = indices
        chosen = [contents.teachers[index] for index in indices]
        self.teachers = [
            CachedTeacher(
                features, str(config.name), contents.shape_of(features), contents.student_grid, contents.grid_matching
            )
            for features, config in zip(chosen, configs)
        ]

    def read(self, content: Path | bytes, num_squares: int = 1) -> dict[str, dict[str, torch.Tensor]] | None:
        """
        Returns the features of the first squares of an image, found by its file or bytes: by teacher `values`
        `(S, m, C)` and, if they are in 8 bits, `scale` and `offset` `(S, C)`. `None` if a square has none, or the
        image changed since they were computed.

        Raises:
            UserError: the features are damaged.
        """
        image = digest(content)
        squares = []
        for number in range(num_squares):
            place = self.files.find(square_key(image, number))
            if place is None:
                return None
            squares.append(
                {
                    teacher.name: dict(zip(Quantized._fields, self.files.read(place, index)))
                    for teacher, index in zip(self.teachers, self.indices)
                }
            )
        return squares[0] if num_squares == 1 else join(squares)

    def blank(self) -> dict[str, dict[str, torch.Tensor]]:
        """Returns features of zeros, for the blank image of a batch without images."""
        is_quantized = self.files.contents.storage == "int8"
        result: dict[str, dict[str, torch.Tensor]] = {}
        for teacher in self.teachers:
            cells, channels = teacher.cells[0] * teacher.cells[1], teacher.channels
            values = torch.zeros(1, cells, channels, dtype=torch.int8 if is_quantized else torch.bfloat16)
            scale = {name: torch.zeros(1, channels, dtype=torch.bfloat16) for name in ("scale", "offset")}
            result[teacher.name] = {"values": values, **(scale if is_quantized else {})}
        return result


def find_features(folder: str | Path) -> list[Path]:
    """Returns the subfolders of a cache that have features; raises a `UserError` if there is none."""
    subfolders = [path.parent for path in sorted(Path(folder).glob(f"*/{CONTENTS_FILE}"))]
    if not subfolders:
        raise UserError(f"The teacher_cache {folder} contains no features: {ADVICE}.")
    return subfolders


def open_cache(
    folder: str | Path,
    configs: list[TeacherConfig],
    image_processor: Any,
    student_grid: int,
    grid_matching: str,
    distill_tiles: bool = True,
) -> FeatureCache:
    """
    Opens the subfolder of a cache that has the features of a stage's teachers.

    Args:
        folder (`str` or `Path`):
            `teacher_cache` of the recipe.
        configs (`list[TeacherConfig]`):
            The stage's teachers. Their files are read once, to check that the features come from them.
        image_processor (image processor):
            The student's.
        student_grid (`int`), grid_matching (`str`):
            Arguments of [`match_grid`].
        distill_tiles (`bool`, *optional*, defaults to `True`):
            As in [`DataArguments`].

    Raises:
        UserError: there is no cache, it is unfinished or damaged, or its features were computed with other settings or
            weights. The message names the first difference.
    """
    subfolders = find_features(folder)
    # One process reads the checkpoints for all.
    weights = decide_once(lambda: [weights_digest(config) for config in configs])
    needed = Needed(configs, weights, image_processor, student_grid, grid_matching, distill_tiles)
    problems, suitable = [], []
    for subfolder in subfolders:
        try:
            contents = Contents.read(subfolder)
            cache = FeatureCache(subfolder, contents, needed.choose(contents), configs)
            suitable.append((contents.storage == "int8", subfolder, cache))
        except UserError as error:
            problems.append(f"in {subfolder.name}, {str(error).removesuffix('.')}")
    if not suitable:
        raise UserError(
            f"The teacher_cache {folder} has no suitable features: {'; '.join(problems[:3])}. So {ADVICE}."
        )
    _, _, cache = min(suitable, key=lambda each: each[:2])  # features in 16 bits if there are both
    return cache
