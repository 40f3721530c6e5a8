"""The training data of a stage, and its teachers' features of a sample of the images."""

from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import send_to_device

from ..files.user_error import UserError
from ..processing.encoder_processor import EncoderProcessor
from ..processing.processing_hawaii import HawaiiProcessor
from .data.conversation_dataset import Collator, ConversationDataset, ConversationReader
from .data.images import ImageDataset, ImageReader, collate_images
from .data.mixture import MixedDataset
from .data.reader import TEACHER_INPUTS, join
from .data.sample_stream import SampleStream, StreamPart
from .recipes.arguments import DataArguments
from .sources.record_table import TableStream
from .teacher_cache.cached_teacher import FeatureCache
from .trainer import teacher_features


NUM_SAMPLES = 64  # with images, whose features set the scale of the targets
MAX_SAMPLES = 6400  # read in search of them
TrainingData = ConversationDataset | ImageDataset | MixedDataset | SampleStream


def stream_data(
    data_args: DataArguments, processor: HawaiiProcessor | EncoderProcessor, seed: int, **options: Any
) -> SampleStream:
    """The training data of a stage with a streamed source; `options` as for the reader of its processor."""
    parts, is_encoder_alone = [], isinstance(processor, EncoderProcessor)
    for source in data_args.sources:
        if source.streaming:
            make_reader = ImageReader if is_encoder_alone else ConversationReader
            images = source.open_images(data_args.follow_links)
            stream, reader = source.stream(), make_reader(images, processor, **options)
        else:
            make_dataset = ImageDataset if is_encoder_alone else ConversationDataset
            checks = {"bad_records": data_args.bad_records, "follow_links": data_args.follow_links}
            reader = make_dataset(source, None, processor, **checks, **options)
            stream = TableStream(reader.records)
        parts.append(StreamPart(source.path, stream, reader, source.weight or 1.0))
    state = PartialState()
    shared = (seed, data_args.bad_records, data_args.image_share)
    return SampleStream(parts, *shared, state.process_index, state.num_processes)


def read_data(
    data_args: DataArguments,
    processor: HawaiiProcessor | EncoderProcessor,
    teachers: list,
    seed: int,
    feature_cache: FeatureCache | None = None,
) -> tuple[TrainingData, Callable[[list[dict]], dict]]:
    """The training data of a stage and its collator; with a cache, no images are made for teachers."""
    size = None if feature_cache else max((teacher.image_size for teacher in teachers), default=None)
    options: dict[str, Any] = {"teacher_image_size": size, "feature_cache": feature_cache}
    if isinstance(processor, EncoderProcessor):
        make_dataset, collator = ImageDataset, collate_images
    else:
        make_dataset = ConversationDataset
        options |= {"distill_tiles": data_args.distill_tiles}
        collator = Collator(processor, packing=data_args.packing, **options)
        options["max_length"] = data_args.max_length
    if data_args.is_streaming:
        return stream_data(data_args, processor, seed, **options), collator
    options |= data_args.record_options
    if not data_args.sources:
        return make_dataset(None, data_args.image_folder, processor, **options), collator
    parts = [make_dataset(source, None, processor, **options) for source in data_args.sources]
    return (parts[0] if len(parts) == 1 else MixedDataset(parts, data_args.weights)), collator


def spread_samples(dataset: Any) -> list[dict]:
    """
    Returns samples spread over the data. If too few of them have images, their neighbours are read as well: rows of
    text may recur in the same interval.
    """
    step = max(1, len(dataset) // NUM_SAMPLES)
    samples, num_with_images = [], 0
    for index in chain.from_iterable(range(start, len(dataset), step) for start in range(step)):
        if num_with_images == NUM_SAMPLES or len(samples) == MAX_SAMPLES:
            break
        samples.append(dataset[index])
        num_with_images += "pixel_values" in samples[-1]
    return samples


def sample_teacher_features(dataset: TrainingData, teachers: list, device: torch.device) -> list:
    """The features of each teacher, on the CPU, for images spread over the data, the same on every process."""
    if isinstance(dataset, SampleStream):
        samples = dataset.take(NUM_SAMPLES)
    else:
        samples = spread_samples(dataset)
    with_images = [sample for sample in samples if "pixel_values" in sample]
    if not with_images:
        raise UserError(
            f"{dataset.data_path}: none of the {len(samples)} sampled records has an image, but the targets are "
            "scaled with images; name a data_path with images for the first stage."
        )
    batch = {
        name: send_to_device(join([sample[name] for sample in with_images]), device)
        for name in TEACHER_INPUTS
        if name in with_images[0]
    }
    return send_to_device(teacher_features(teachers, batch), "cpu")
