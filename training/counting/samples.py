"""Number and lengths of a stage's samples: from the data or, without them, from known sizes and the options."""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ...configuration.configuration_hawaii import HawaiiConfig
from ...configuration.tiles_hawaii import count_image_tokens, count_tiles
from ...files.user_error import UserError
from ...modeling_hawaii.vision_hawaii import HawaiiVisionModel
from ..data.conversation_dataset import ConversationDataset
from ..data.conversations import tokenize_conversation
from ..data.images import ImageDataset
from ..data.mixture import share_counts
from ..objectives.encoder_passes import Student
from ..recipes.recipe import Stage
from ..sources.record import Record
from ..students.processor import build_processor
from ..students.tokenizer import load_tokenizer
from .step import BatchShape


# Number of records of the data of LLaVA-1.5 and LLaVA-NeXT, by file or folder.
KNOWN_SIZES = {
    "blip_laion_cc_sbu_558k.json": 558_128,
    "llava_v1_5_mix665k.json": 665_298,
    "llava_next_data": 779_289,
}
NUM_MEASURED = 1024  # records whose lengths are measured, spread over the data


@dataclass
class Samples:
    """
    Args:
        count (`int`, *optional*):
            Number of samples, if it is known.
        usual, longest (`BatchShape`):
            A micro-batch of mean size, padded, and one of the longest samples.
        note (`str`):
            A sentence about the source of the lengths.
    """

    count: int | None
    usual: BatchShape
    longest: BatchShape
    note: str


def mean_padded_length(lengths: Sequence[int], batch_size: int, is_grouped: bool) -> float:
    """Mean length of a sample after padding, in batches of this size."""
    generator = torch.Generator().manual_seed(0)
    values = torch.tensor(lengths)[torch.randperm(len(lengths), generator=generator)]
    values = values.sort().values if is_grouped else values
    batches = values.split(batch_size)
    return sum(len(batch) * batch.max().item() for batch in batches) / len(lengths)


def largest_image(config: HawaiiConfig) -> tuple[int, int]:
    """Numbers of tokens and of tiles of an image of the student's largest grid; those of one square without tiles."""
    vision, pinpoints = config.vision_config, config.image_grid_pinpoints
    if pinpoints is None:
        return vision.num_patches, 1
    # An image with exactly the size of a grid has no padding, whose tokens would be left out.
    num_tokens = count_image_tokens(pinpoints, pinpoints, vision.image_size, vision.patches_a_side)
    return max(num_tokens), max(count_tiles(pinpoints, pinpoints, vision.image_size))


def check_bounds(stage: Stage, config: HawaiiConfig) -> None:
    """
    Checks that an image fits into a sample and a batch of a stage, even if it has the largest grid of tiles.

    Raises:
        UserError: `max_length` or `max_batch_tiles` is too small.
    """
    num_tokens, num_tiles = largest_image(config)
    kind = "an image alone has" if config.image_grid_pinpoints is None else "an image of the largest grid alone has"
    if stage.distilled_teachers and stage.data.max_length <= num_tokens:
        raise UserError(
            f"max_length is {stage.data.max_length}, but {kind} {num_tokens} tokens; it must be larger by the length "
            "of the text."
        )
    bound = stage.data.max_batch_tiles
    if bound is not None and bound < num_tiles:
        raise UserError(
            f"max_batch_tiles is {bound}, but an image of the largest grid of image_grid_pinpoints has {num_tiles} "
            f"tiles, with the whole picture; make it {num_tiles} or more, or leave out the largest grids."
        )


def _measure_record(dataset: ConversationDataset, record: Record) -> tuple[int, int, int, int, int]:
    """Numbers of tokens, prompt tokens, labels, images and squares of a sample."""
    sizes, num_image_tokens = dataset.read_image_sizes(record), None
    num_squares = len(record.images)
    if sizes is not None:
        num_image_tokens = dataset.processor.count_image_tokens(sizes)
        num_squares = sum(dataset.processor.count_tiles(sizes))
    conversation = tokenize_conversation(record.messages, dataset.processor, num_image_tokens)
    kept, prompt = (part[: dataset.max_length] for part in (conversation.is_answer, conversation.is_prompt))
    return len(kept), sum(prompt), sum(kept), len(record.images), num_squares


def _measure(stage: Stage, datasets: list[ConversationDataset]) -> Samples:
    data_args, args = stage.data, stage.training
    sizes = _share(stage, datasets)
    rows = []
    for dataset, size in zip(datasets, sizes):
        num_measured = max(1, NUM_MEASURED * size // sum(sizes))
        for index in range(0, len(dataset), max(1, len(dataset) // num_measured)):
            with suppress(UserError):  # a broken image
                rows.append(_measure_record(dataset, dataset.records[index]))
    if not rows:
        raise UserError("no record can be read")
    lengths, prompts, labels, images, squares = (list(column) for column in zip(*rows))
    most_tiles = math.inf if data_args.max_batch_tiles is None else data_args.max_batch_tiles
    has_bound = data_args.max_batch_tokens is not None or data_args.max_batch_tiles is not None
    is_grouped = has_bound or args.train_sampling_strategy == "group_by_length"
    has_tiles = any(dataset.processor.image_grid_pinpoints is not None for dataset in datasets)

    def mean(values: list[int]) -> float:
        return sum(values) / len(values)

    def padded(values: list[int], batch_size: int) -> int:
        return round(mean(values) if data_args.packing else mean_padded_length(values, batch_size, is_grouped))

    def batch_size(length: float, num_squares: float) -> int:
        size = args.per_device_train_batch_size
        if data_args.max_batch_tokens is not None:
            size = data_args.max_batch_tokens // length
        return max(1, int(min(size, most_tiles // max(1, num_squares))))

    size = batch_size(mean(lengths), mean(squares))
    largest = batch_size(*max(zip(lengths, squares)))
    usual = BatchShape(
        size,
        max(1, round(size * mean(images))),
        padded(lengths, size),
        padded(prompts, size),
        max(1, round(size * mean(labels))),
        data_args.packing,
        max(1, round(size * mean(squares))) if has_tiles else None,
        data_args.distill_tiles,
    )
    # An upper bound: a batch of the longest samples with as many images as any batch.
    num_images, num_squares = (
        max(
            [1, largest * max(numbers)]
            + [batch_size(length, number) * count for length, number, count in zip(lengths, squares, numbers)]
        )
        for numbers in (images, squares)
    )
    longest = BatchShape(
        largest,
        int(min(num_images, most_tiles)),
        max(lengths),
        max(prompts),
        largest * max(labels),
        data_args.packing,
        int(min(num_squares, most_tiles)) if has_tiles else None,
        data_args.distill_tiles,
    )
    note = f"Lengths are those of {len(rows):,} records of the data."
    return Samples(sum(sizes), usual, longest, note)


def _share(stage: Stage, datasets: list) -> list[int]:
    """The number of samples of an epoch from each source."""
    return share_counts([len(dataset) for dataset in datasets], stage.data.weights)


def find_samples(stage: Stage, student: Student, num_tokens: int | None = None) -> Samples:
    """
    Finds the number and the lengths of a stage's samples.

    Args:
        stage (`Stage`):
            Stage of a recipe.
        student (`HawaiiForConditionalGeneration` or `HawaiiVisionModel`):
            The student, on any device.
        num_tokens (`int`, *optional*):
            Mean number of positions of a sample, instead of the data's.

    Raises:
        UserError: an image does not fit into a sample or a batch.
    """
    data_args, batch_size = stage.data, stage.training.per_device_train_batch_size
    options = {**data_args.record_options, "bad_records": "skip"}
    paths = [source.path for source in data_args.sources] or [data_args.image_folder]
    has_data = not data_args.is_streaming and all(Path(path).exists() for path in paths)
    if isinstance(student, HawaiiVisionModel):
        shape = BatchShape(batch_size, batch_size)
        count = None
        if has_data:
            processor: Any = None  # the images are counted, not read
            sources = data_args.sources or [None]
            datasets = [ImageDataset(source, data_args.image_folder, processor, **options) for source in sources]
            count = sum(_share(stage, datasets))
        return Samples(count, shape, shape, "")
    config = student.config
    check_bounds(stage, config)
    vision, pinpoints = config.vision_config, config.image_grid_pinpoints
    problem = "The data are streamed" if data_args.is_streaming else "The data are not on this machine"
    if has_data and num_tokens is None:
        try:
            processor = build_processor(stage.model, data_args, vision, load_tokenizer(stage.model), pinpoints)
            options["max_length"] = data_args.max_length
            datasets = [ConversationDataset(source, None, processor, **options) for source in data_args.sources]
            return _measure(stage, datasets)
        except (OSError, UserError) as error:  # such as a tokenizer that cannot be downloaded
            problem = f"The data could not be measured ({error})"
    length = min(num_tokens or data_args.max_length, data_args.max_length)
    if data_args.max_batch_tokens is not None:
        batch_size = max(1, data_args.max_batch_tokens // length)
    num_image_tokens, num_tiles = largest_image(config)
    if data_args.max_batch_tiles is not None:
        batch_size = min(batch_size, data_args.max_batch_tiles // num_tiles)
    num_text = max(1, length - num_image_tokens)
    shape = BatchShape(
        batch_size,
        batch_size,
        length,
        num_text,
        batch_size * num_text,
        data_args.packing,
        None if pinpoints is None else batch_size * num_tiles,
        data_args.distill_tiles,
    )
    num_text = max(1, data_args.max_length - num_image_tokens)
    texts = {"num_prompt_tokens": num_text, "num_labels": batch_size * num_text}
    longest = replace(shape, num_tokens=data_args.max_length, **texts)
    counts = [KNOWN_SIZES.get(Path(path).name) for path in paths]
    count = None if None in counts else sum(filter(None, counts))
    image = "one image" if pinpoints is None else f"one image of the largest grid, with {num_tiles} tiles,"
    note = (
        f"{problem}, so each sample has {image} and {length:,} positions, the max_length: an upper bound. "
        "`--tokens N` sets the mean of your data."
        if num_tokens is None
        else f"Each sample has {image} and {length:,} positions, as `--tokens` says; the longest have "
        f"{data_args.max_length:,}, the max_length."
    )
    return Samples(count, shape, longest, note)
