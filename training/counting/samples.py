"""Number and lengths of a stage's samples: from the data or, without them, from known sizes and the options."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ...files.user_error import UserError
from ...modeling_hawaii.vision_hawaii import HawaiiVisionModel
from ..data.conversation_dataset import ConversationDataset
from ..data.conversations import tokenize_conversation
from ..data.images import ImageDataset
from ..data.mixture import share_counts
from ..objectives.encoder_passes import Student, encoder_of
from ..recipes.recipe import Stage
from ..students.processor import build_processor
from ..students.tokenizer import load_tokenizer
from .step import BatchShape


# Number of records of LLaVA-1.5's files.
KNOWN_SIZES = {"blip_laion_cc_sbu_558k.json": 558_128, "llava_v1_5_mix665k.json": 665_298}
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


def _measure(stage: Stage, datasets: list[ConversationDataset]) -> Samples:
    data_args, args = stage.data, stage.training
    sizes = _share(stage, datasets)
    rows = []
    for dataset, size in zip(datasets, sizes):
        num_measured = max(1, NUM_MEASURED * size // sum(sizes))
        for index in range(0, len(dataset), max(1, len(dataset) // num_measured)):
            record = dataset.records[index]
            conversation = tokenize_conversation(record.messages, dataset.processor)
            kept = conversation.is_answer[: data_args.max_length]
            prompt = conversation.is_prompt[: data_args.max_length]
            rows.append((len(kept), sum(prompt), sum(kept), len(record.images)))
    lengths, prompts, labels, images = (list(column) for column in zip(*rows))
    is_grouped = data_args.max_batch_tokens is not None or args.train_sampling_strategy == "group_by_length"

    def mean(values: list[int]) -> float:
        return sum(values) / len(values)

    def padded(values: list[int], batch_size: int) -> int:
        return round(mean(values) if data_args.packing else mean_padded_length(values, batch_size, is_grouped))

    def batch_size(length: float) -> int:
        if data_args.max_batch_tokens is None:
            return args.per_device_train_batch_size
        return max(1, int(data_args.max_batch_tokens // length))

    size, largest = batch_size(mean(lengths)), batch_size(max(lengths))
    usual = BatchShape(
        size,
        max(1, round(size * mean(images))),
        padded(lengths, size),
        padded(prompts, size),
        max(1, round(size * mean(labels))),
        data_args.packing,
    )
    # An upper bound: a batch of the longest samples with as many images as a batch of the shortest ones.
    shortest = min((length for length, number in zip(lengths, images) if number), default=max(lengths))
    num_images = max(largest * max(images), batch_size(shortest))
    longest = BatchShape(
        largest, max(1, num_images), max(lengths), max(prompts), largest * max(labels), data_args.packing
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
    vision = encoder_of(student).config
    problem = "The data are streamed" if data_args.is_streaming else "The data are not on this machine"
    if has_data and num_tokens is None:
        try:
            processor = build_processor(stage.model, data_args, vision, load_tokenizer(stage.model))
            options["max_length"] = data_args.max_length
            datasets = [ConversationDataset(source, None, processor, **options) for source in data_args.sources]
            return _measure(stage, datasets)
        except (OSError, UserError) as error:  # such as a tokenizer that cannot be downloaded
            problem = f"The data could not be measured ({error})"
    length = min(num_tokens or data_args.max_length, data_args.max_length)
    if data_args.max_batch_tokens is not None:
        batch_size = max(1, data_args.max_batch_tokens // length)
    num_text = max(1, length - vision.num_patches)
    shape = BatchShape(batch_size, batch_size, length, num_text, batch_size * num_text, data_args.packing)
    num_text = max(1, data_args.max_length - vision.num_patches)
    texts = {"num_prompt_tokens": num_text, "num_labels": batch_size * num_text}
    longest = replace(shape, num_tokens=data_args.max_length, **texts)
    counts = [KNOWN_SIZES.get(Path(path).name) for path in paths]
    count = None if None in counts else sum(filter(None, counts))
    note = (
        f"{problem}, so each sample has one image and {length:,} positions, the max_length: an upper bound. "
        "`--tokens N` sets the mean of your data."
        if num_tokens is None
        else f"Each sample has one image and {length:,} positions, as `--tokens` says; the longest have "
        f"{data_args.max_length:,}, the max_length."
    )
    return Samples(count, shape, longest, note)
