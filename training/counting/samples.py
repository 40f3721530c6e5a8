"""Number and lengths of a stage's samples: from the data if they are there, otherwise from what is known."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...files.user_error import UserError
from ...modeling_hawaii.vision_hawaii import HawaiiVisionModel
from ..data.conversation_dataset import ConversationDataset
from ..data.conversations import tokenize_conversation
from ..data.images import ImageDataset
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
            Where the lengths come from, as a sentence.
    """

    count: int | None
    usual: BatchShape
    longest: BatchShape
    note: str


def mean_padded_length(lengths: Sequence[int], batch_size: int, is_grouped: bool) -> float:
    """Mean length of a sample in batches of this size, in which each is as long as the longest."""
    generator = torch.Generator().manual_seed(0)
    values = torch.tensor(lengths)[torch.randperm(len(lengths), generator=generator)]
    values = values.sort().values if is_grouped else values
    batches = values.split(batch_size)
    return sum(len(batch) * batch.max().item() for batch in batches) / len(lengths)


def _measure(stage: Stage, dataset: ConversationDataset) -> Samples:
    batch_size = stage.training.per_device_train_batch_size
    records = dataset.records
    step = max(1, len(records) // NUM_MEASURED)
    rows = []
    for index in range(0, len(records), step):
        conversation = tokenize_conversation(records[index].messages, dataset.processor)
        kept = conversation.is_answer[: dataset.max_length]
        prompt = conversation.is_prompt[: dataset.max_length]
        rows.append((len(kept), sum(prompt), sum(kept), len(records[index].images)))
    lengths, prompts, labels, images = (list(column) for column in zip(*rows))
    is_grouped = stage.training.train_sampling_strategy == "group_by_length"

    def mean(values: list[int]) -> float:
        return sum(values) / len(values)

    usual = BatchShape(
        batch_size,
        max(1, round(batch_size * mean(images))),
        round(mean_padded_length(lengths, batch_size, is_grouped)),
        round(mean_padded_length(prompts, batch_size, is_grouped)),
        max(1, round(batch_size * mean(labels))),
    )
    longest = BatchShape(
        batch_size, max(1, batch_size * max(images)), max(lengths), max(prompts), batch_size * max(labels)
    )
    note = f"Lengths are those of {len(rows):,} records of the data."
    return Samples(len(dataset), usual, longest, note)


def find_samples(stage: Stage, student: Student, num_tokens: int | None = None) -> Samples:
    """
    Finds the number and the lengths of a stage's samples.

    Args:
        stage (`Stage`):
            Stage of a recipe.
        student (`HawaiiForConditionalGeneration` or `HawaiiVisionModel`):
            The student, on any device.
        num_tokens (`int`, *optional*):
            Mean number of positions of a sample, instead of that of the data.
    """
    data_args, batch_size = stage.data, stage.training.per_device_train_batch_size
    paths = (data_args.data_path, data_args.image_folder)
    options = {"image_share": data_args.image_share, "follow_links": data_args.follow_links, "bad_records": "skip"}
    has_data = Path(data_args.data_path or data_args.image_folder).exists()
    if isinstance(student, HawaiiVisionModel):
        shape = BatchShape(batch_size, batch_size)
        count = None
        if has_data:
            processor: Any = None  # the images are counted, not read
            count = len(ImageDataset(*paths, processor, **options))
        return Samples(count, shape, shape, "")
    vision = encoder_of(student).config
    problem = "The data are not there"
    if has_data and num_tokens is None:
        try:
            processor = build_processor(stage.model, data_args, vision, load_tokenizer(stage.model))
            dataset = ConversationDataset(*paths, processor, max_length=data_args.max_length, **options)
            return _measure(stage, dataset)
        except (OSError, UserError) as error:  # such as a tokenizer that cannot be downloaded
            problem = f"The data could not be measured ({error})"
    length = min(num_tokens or data_args.max_length, data_args.max_length)
    num_text = max(1, length - vision.num_patches)
    shape = BatchShape(batch_size, batch_size, length, num_text, batch_size * num_text)
    count = KNOWN_SIZES.get(Path(data_args.data_path or "").name)
    note = (
        f"{problem}, so each sample has one image and {length:,} positions, the max_length: an upper bound. "
        "`--tokens N` sets the mean of your data."
        if num_tokens is None
        else f"Each sample has one image and {length:,} positions, as `--tokens` says."
    )
    return Samples(count, shape, shape, note)
