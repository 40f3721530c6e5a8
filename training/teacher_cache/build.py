"""Computes the features of all images of a recipe once, for training without teachers."""

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import PartialState
from accelerate.utils import gather_object
from filelock import BaseFileLock, FileLock, Timeout
from torch.utils.data import ConcatDataset, DataLoader, Subset
from tqdm import tqdm

from ...configuration.configuration_hawaii import check_choice
from ...files.digest import digest
from ...files.user_error import UserError, explain_errors
from ...processing.encoder_processor import EncoderProcessor, load_image_processor
from ..counting.recipes import outline_vision
from ..data.images import ImageDataset, NoImagesError
from ..data.processes import decide_once
from ..recipes.arguments import DataArguments
from ..recipes.objectives import OBJECTIVES
from ..recipes.recipe import Recipe, Stage, read_recipe
from ..sources.record import Record
from ..students.processor import find_pinpoints, image_source
from ..students.student import vision_fields
from ..teachers.config import TeacherConfig
from ..teachers.grids import match_grid
from ..teachers.loading import load_teachers
from ..teachers.teacher import Teacher
from .contents import STORAGES, CachedFeatures, Contents, Squares
from .feature_files import FeatureFiles, square_key, stored_images, write_features, write_index
from .quantization import dequantize, images_per_block, quantize


LOCK_FILE = "cache.lock"
BYTES_PER_FILE = 256 * 2**20
SECONDS_PER_FILE = 60.0  # a kill loses no more work than this
# Features in 8 bits with a smaller cosine to the computed ones are reported.
LEAST_COSINE = 0.999


class UncachedImages(ImageDataset):
    """
    The squares of images whose features are not in a cache yet. Arguments as for [`ImageDataset`].

    Args:
        stored (`set[str]`):
            Digests of the squares that have features, see [`square_key`].
    """

    def __init__(self, *args, stored: set[str], **kwargs):
        self.stored = stored
        super().__init__(*args, **kwargs)

    def make_sample(self, record: Record) -> dict:
        """
        Returns:
            `dict` with the `digests` of those squares of an image that have no features yet and, if there are some,
            their `teacher_images`, uint8, of shape `(num_squares, 3, side, side)`.
        """
        (image,) = record.images
        content = self.read_content(image)
        try:
            key = digest(content)
        except OSError as error:
            raise UserError(f"its image {image} cannot be read ({error})") from error
        keys = [square_key(key, number) for number in range(self.count_squares(image, content))]
        new = [number for number, key in enumerate(keys) if key not in self.stored]
        if not new:
            return {"digests": []}
        return {
            "digests": [keys[number] for number in new],
            "teacher_images": self.read_teacher_images(image, content)[new],
        }


class FeatureWriter:
    """
    Collects features and writes them to files of bounded size.

    Args:
        folder (`Path`), contents ([`Contents`]):
            The subfolder and its description.

    Attributes:
        cosines (`list[list[float]]`):
            For each teacher, the mean cosine between the cells of the stored and the computed features of each file,
            and the smallest value of an image.
    """

    def __init__(self, folder: Path, contents: Contents):
        self.folder, self.contents = folder, contents
        shapes = [contents.shape_of(teacher) for teacher in contents.teachers]
        bytes_per_value = 1 if contents.storage == "int8" else 2
        bytes_per_image = sum(cells * channels for cells, channels in shapes) * bytes_per_value
        # A block of images that share their scales is never divided.
        whole = max(images_per_block(cells) for cells, _ in shapes)
        self.images_per_file = max(1, BYTES_PER_FILE // (bytes_per_image * whole)) * whole
        self.images: list[str] = []
        self.features: list[list[torch.Tensor]] = [[] for _ in shapes]
        self.cosines: list[torch.Tensor] = []
        self._last_file = time.monotonic()

    def add(self, images: Sequence[str], features: Sequence[torch.Tensor]) -> None:
        """Adds `(num_images, num_cells, channels)` of each teacher; writes a file if it is full or after a minute."""
        self.images += images
        for parts, part in zip(self.features, features):
            parts.append(part)
        while len(self.images) >= self.images_per_file:
            self._write(self.images_per_file)
        if time.monotonic() - self._last_file > SECONDS_PER_FILE:
            self.finish()

    def finish(self) -> None:
        """Writes the remaining features."""
        if self.images:
            self._write(len(self.images))

    def _write(self, count: int) -> None:
        joined = [torch.cat(parts) for parts in self.features]
        chosen = [features[:count] for features in joined]
        for teacher, features in zip(self.contents.teachers, chosen):
            is_finite = features.isfinite().flatten(1).all(dim=1)
            if not is_finite.all():
                number = int(is_finite.int().argmin())
                raise UserError(
                    f"The features of teacher {teacher.name} are not finite for the image with digest "
                    f"{self.images[number]}: set its dtype to float32."
                )
        write_features(self.folder, self.contents, self.images[:count], chosen)
        if self.contents.storage == "int8":
            self.cosines.append(torch.stack([cosines(features) for features in chosen]))
        self.images = self.images[count:]
        self.features = [[features[count:].clone()] for features in joined]
        self._last_file = time.monotonic()


def cosines(features: torch.Tensor) -> torch.Tensor:
    """
    Compares features with their 8-bit form: the cosine between the channels of a cell, averaged over all cells, and
    the smallest average of an image.

    Args:
        features (`torch.FloatTensor` of shape `(num_images, num_cells, channels)`):
            Computed features.
    """
    values, scale, offset = quantize(features)
    block = torch.arange(len(values)) // images_per_block(features.shape[1])
    restored = dequantize(values, scale[block], offset[block], torch.float32)
    similarity = F.cosine_similarity(restored, features.float(), dim=-1).mean(dim=1)  # (n,)
    return torch.stack([similarity.mean(), similarity.min()])


def collate(samples: list[dict]) -> tuple[list[str], torch.Tensor | None, int]:
    """Returns digests and pixels `(num_squares, 3, side, side)` of the squares without features; counts all images."""
    new = {
        key: square
        for sample in samples
        if sample["digests"]
        for key, square in zip(sample["digests"], sample["teacher_images"])
    }
    return list(new), torch.stack(list(new.values())) if new else None, len(samples)


def _start_worker(number: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # after Ctrl-C it ends with the loader, without a traceback


@torch.no_grad()
def compute(
    loader: DataLoader, teachers: list[Teacher], writer: FeatureWriter, stored: set[str], device: torch.device
) -> Iterator[int]:
    """Computes and writes the features of a loader's images; yields how many images each batch contained."""
    contents = writer.contents
    for digests, squares, count in loader:
        new = [number for number, key in enumerate(digests) if key not in stored]  # equal files are stored once
        for start in range(0, len(new), loader.batch_size or 1):  # as many squares at once, also of images with tiles
            chosen = new[start : start + (loader.batch_size or 1)]
            inputs = squares[chosen].to(device)
            grids = [teacher(inputs) for teacher in teachers]
            matched = [match_grid(grid, contents.student_grid, contents.grid_matching) for grid in grids]
            writer.add([digests[number] for number in chosen], [features.cpu() for features in matched])
            stored.update(digests[number] for number in chosen)
        yield count
    writer.finish()


def _stages_to_cache(recipe: Recipe) -> list[tuple[Stage, str]]:
    """Returns the stages whose objective can read its features from a cache, each with its grid matching."""
    stages = []
    for stage in recipe.stages.values():
        matching = OBJECTIVES[stage.training.objective].cached_matching(stage.options)
        if matching is not None and stage.distilled_teachers:
            stages.append((stage, matching))
    if not stages:
        raise UserError(
            f"{recipe.path}: no stage can read features from a cache: its objective has no teachers or reads more "
            "than their grids."
        )
    return stages


def _cache_stage(
    folder: Path,
    storage: str,
    stage: Stage,
    first: Stage,
    matching: str,
    loaded: dict[str, list[Teacher]],
    image_grid_pinpoints: list[list[int]] | None,
) -> str | None:
    """Computes features that a stage needs and the cache lacks; returns a line about them, `None` without images."""
    args = stage.training
    fields = vision_fields(first.model, len(stage.distilled_teachers), args.objective)
    with explain_errors(f"The encoder of stage {first.name} cannot be built"):
        vision = outline_vision(first.model, fields)
    original = load_image_processor(image_source(first.model))
    processor = EncoderProcessor(original, vision, stage.data.image_aspect_ratio)
    images = processor.image_processor
    with explain_errors(f"Stage {stage.name}"):
        images.image_grid_pinpoints = image_grid_pinpoints
    teachers = _load(stage.distilled_teachers, args.device, loaded)
    side = max(teacher.image_size for teacher in teachers)
    contents = Contents(
        storage,
        Squares.of(images, side, stage.data.distill_tiles),
        vision.patches_a_side,
        matching,
        [CachedFeatures.of(config, teacher) for config, teacher in zip(stage.distilled_teachers, teachers)],
    )
    subfolder = folder / contents.folder_name
    subfolder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(subfolder / LOCK_FILE)
    decide_once(_open_subfolder, lock, subfolder, contents)
    try:
        return _fill_subfolder(subfolder, contents, stage, processor, teachers)
    finally:
        lock.release()


def _open_subfolder(lock: BaseFileLock, subfolder: Path, contents: Contents) -> None:
    """Locks a subfolder, removes the incomplete files of killed commands and describes the contents."""
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise UserError(
            f"Another `hawaii cache` is writing {subfolder}: wait until it ends. The same command then computes only "
            "what is missing."
        ) from None
    for leftover in subfolder.glob("*.incomplete"):
        leftover.unlink()
    contents.write(subfolder)


def _fill_subfolder(
    subfolder: Path, contents: Contents, stage: Stage, processor: EncoderProcessor, teachers: list[Teacher]
) -> str | None:
    """Computes the features that a subfolder lacks; returns a line about them, `None` without images."""
    state, args = PartialState(), stage.training
    side = contents.squares.side
    stored = stored_images(subfolder)
    num_stored = len(stored)
    state.wait_for_everyone()  # before any process writes a file
    parts = _uncached_images(stage.data, processor, side, stored)
    if not parts:
        return None
    images = ConcatDataset(parts)
    share = Subset(images, range(state.process_index, len(images), state.num_processes))
    loader = DataLoader(
        share,
        args.per_device_train_batch_size,
        num_workers=args.dataloader_num_workers,
        collate_fn=collate,
        worker_init_fn=_start_worker,
    )
    writer = FeatureWriter(subfolder, contents)
    with tqdm(total=len(share), unit=" images", desc=stage.name, disable=not state.is_local_main_process) as bar:
        for count in compute(loader, teachers, writer, stored, args.device):
            bar.update(count)
    state.wait_for_everyone()
    if state.is_main_process:
        write_index(subfolder, contents)
    state.wait_for_everyone()
    similarity = gather_object([torch.stack(writer.cosines)] if writer.cosines else [])
    return _describe(stage.name, subfolder, contents, num_stored, similarity)


def _uncached_images(
    data: DataArguments, processor: EncoderProcessor, side: int, stored: set[str]
) -> list[UncachedImages]:
    """The images of each source of a stage; sources without images are left out."""
    options = {
        **data.record_options,
        "teacher_image_size": side,
        "distill_tiles": data.distill_tiles,
        "stored": stored,
    }
    parts = []
    for source in data.sources or [None]:
        with suppress(NoImagesError):
            parts.append(UncachedImages(source, data.image_folder, processor, **options))
    return parts


def _load(configs: list[TeacherConfig], device: torch.device, loaded: dict[str, list[Teacher]]) -> list[Teacher]:
    """Loads the teachers of a stage, once for successive stages with the same teachers."""
    if repr(configs) not in loaded:
        loaded.clear()
        loaded[repr(configs)] = load_teachers(configs, device)
    return loaded[repr(configs)]


def _describe(name: str, subfolder: Path, contents: Contents, num_stored: int, similarity: list[torch.Tensor]) -> str:
    files = FeatureFiles(subfolder, contents)
    size = sum((subfolder / file).stat().st_size for file in files.names)
    num_squares, noun = len(files), "image" if contents.squares.image_grid_pinpoints is None else "tile"
    values = sum(cells * channels for cells, channels in map(contents.shape_of, contents.teachers))
    lines = [
        f"Stage {name}: {subfolder} has the features of {num_squares} {noun}s, {num_squares - num_stored} of them "
        f"new; {size / 2**20:.1f} MiB, {size / num_squares / 2**10:.1f} KiB for each {noun}, "
        f"{size / (2 * values * num_squares):.1%} of bfloat16's."
    ]
    if similarity:
        means, least = torch.cat(similarity).unbind(dim=-1)  # (files, N)
        for index, teacher in enumerate(contents.teachers):
            mean, lowest = means[:, index].mean().item(), least[:, index].min().item()
            line = f"  {teacher.name}: cosine to the computed features {mean:.5f}, of one {noun} at least {lowest:.5f}"
            advice = "" if mean >= LEAST_COSINE else " (store it with --storage bfloat16)"
            lines.append(line + advice)
    return "\n".join(lines)


def build_cache(
    recipe: str, overrides: Sequence[str] | None = None, output_dir: str | None = None, storage: str = "int8"
) -> None:
    """
    Computes the features of each teacher for all images of a recipe's stages, as the objective uses them, and stores
    them. Images that have features are skipped, so a stopped run continues if it is started again. Under `accelerate
    launch` the processes share the images.

    Args:
        recipe (`str`):
            A YAML file, or the name of a built-in recipe.
        overrides (`Sequence[str]`, *optional*):
            `key=value` or `stages.NAME.key=value`.
        output_dir (`str`, *optional*):
            Folder of the cache; the recipe's `teacher_cache` if not given.
        storage (`str`, *optional*, defaults to `"int8"`):
            `int8`, with a range for each channel, or `bfloat16`.

    Raises:
        UserError: there is no folder for the cache, no stage can use one, an image cannot be read, or features are not
            finite.
    """
    with explain_errors():
        check_choice("storage", storage, STORAGES)
    plan = read_recipe(recipe, overrides)
    first = next(iter(plan.stages.values()))
    loaded: dict[str, list[Teacher]] = {}
    lines = []
    pinpoints = find_pinpoints(plan)
    for stage, matching in _stages_to_cache(plan):
        folder = output_dir or stage.data.teacher_cache
        if folder is None:
            raise UserError(
                f"{plan.path}, stage {stage.name}: there is no folder for the cache: name one with --output_dir or as "
                "the recipe's teacher_cache."
            )
        stage = plan.build_stage(stage.name)
        line = _cache_stage(Path(folder), storage, stage, first, matching, loaded, pinpoints[stage.name])
        lines.append(line or f"Stage {stage.name} has no images.")
    PartialState().print("\n".join(lines))
