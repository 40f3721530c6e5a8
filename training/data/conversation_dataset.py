"""Samples of conversations about images, and their batches."""

from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from ...files.digest import digest
from ...files.user_error import UserError
from ...processing.processing_hawaii import HawaiiProcessor
from ..sources.cache import read_cached
from ..sources.record import Record
from ..sources.record_table import RecordTable
from .checked import image_states
from .conversations import clean_text, tokenize_conversation
from .processes import decide_once
from .reader import FeatureReader, RecordReader, join
from .records import RecordDataset


IGNORE_INDEX = -100


class ConversationReader(RecordReader):
    """
    Makes training samples of conversations. Reading a sample raises an error if its images or all answers are
    truncated.

    Args:
        max_length (`int`, *optional*, defaults to 2048):
            Longer samples are truncated.
        args, kwargs:
            As for [`RecordReader`].
    """

    processor: HawaiiProcessor

    def __init__(self, *args, max_length: int = 2048, **kwargs):
        self.max_length = max_length
        super().__init__(*args, **kwargs)

    def make_sample(self, record: Record) -> dict:
        """
        Returns:
            `dict` with `input_ids`, `labels` (-100 outside of answers) and `prompt_ids`, each one-dimensional, the
            images of [`RecordReader`], and `record_id`, as text for errors.

        Raises:
            UserError: An image is broken, or no label is left after truncation.
        """
        images, num_image_tokens = self._read_images(record), None
        if "image_sizes" in images:
            num_image_tokens = self.processor.count_image_tokens(images["image_sizes"].tolist())
        conversation = tokenize_conversation(record.messages, self.processor, num_image_tokens)
        input_ids = torch.tensor(conversation.input_ids[: self.max_length])
        is_answer = torch.tensor(conversation.is_answer[: self.max_length])
        is_prompt = torch.tensor(conversation.is_prompt[: self.max_length])
        labels = input_ids.where(is_answer, IGNORE_INDEX)
        labels[0] = IGNORE_INDEX  # has no context, so the model has no prediction for it
        if self.processor.image_token_id in conversation.input_ids[self.max_length :]:
            raise UserError(
                f"its {len(record.images)} images and its text do not fit into max_length {self.max_length}"
            )
        if (labels == IGNORE_INDEX).all():
            raise UserError(f"truncation to max_length {self.max_length} removes all of its answers")
        return {
            "input_ids": input_ids,
            "labels": labels,
            "prompt_ids": input_ids[is_prompt],
            **images,
            "record_id": repr(record.id),
        }


def first_question(record: Record) -> str:
    """The first question of a conversation; empty for captions without questions."""
    questions = [message for message in record.messages if message.role == "user"]
    return clean_text(questions[0].text) if questions else ""


class ConversationDataset(ConversationReader, RecordDataset):
    """
    Conversations for training.

    Args:
        args, kwargs:
            As for [`RecordDataset`] and [`ConversationReader`].
    """

    kind = "conversations"

    def _check_options(self) -> list[str]:
        return [str(self.max_length)]

    @property
    def question(self) -> str:
        """The first question of the first record; empty for captions without questions."""
        return first_question(self.records[0])

    def count_samples(self) -> tuple[list[int], list[int]]:
        """
        The number of tokens of each sample, zero if it cannot be tokenized, and the number of tiles of its images, of
        which only sizes are read. Uses the numbers of `hawaii check` if there are any.
        """
        counts = self._find_counts()  # (2, N)
        if self.records.indices is not None:
            counts = counts[:, self.records.indices]
        return np.minimum(counts[0], self.max_length).tolist(), counts[1].tolist()

    def _find_counts(self) -> np.ndarray:
        all_records = RecordTable(self.records.path)
        key = self.check_key(self.records)
        states = ""
        if self.processor.image_grid_pinpoints is not None:  # the counts depend on the sizes of the images
            states = decide_once(image_states, self.images, all_records.without_messages())
            key = digest(key.encode(), states.encode())
        if self.checked is not None and states in ("", self.checked.all_states):
            return np.array([self.checked.num_tokens, self.checked.num_tiles])

        def write(path: Path) -> None:
            with path.open("wb") as file:
                counts = chain.from_iterable(map(self._count_record, all_records))
                np.save(file, np.fromiter(counts, np.int32).reshape(-1, 2).T)

        return read_cached(f"{key}.counts.npy", write, np.load)

    def _count_record(self, record: Record) -> tuple[int, int]:
        """Numbers of tokens and of tiles of a record; no tokens if it cannot be used."""
        if self._find_problem(record) is None:
            with suppress(UserError):
                sizes = self.read_image_sizes(record)
                num_image_tokens = None if sizes is None else self.processor.count_image_tokens(sizes)
                tokens = tokenize_conversation(record.messages, self.processor, num_image_tokens).input_ids
                return len(tokens), len(record.images) if sizes is None else sum(self.processor.count_tiles(sizes))
        return 0, len(record.images)


class Collator:
    """
    Pads samples to a batch, on the right, or packs them into one sequence.

    A batch without images gets a blank image without tokens: in a sharded run every process must run the encoder, or
    the others would wait forever.

    Args:
        processor, teacher_image_size, feature_cache:
            As for [`ConversationDataset`].
        packing (`bool`, *optional*, defaults to `False`):
            Whether to pack the samples: one sequence without padding, in which positions start over with each sample.
    """

    def __init__(
        self,
        processor: HawaiiProcessor,
        teacher_image_size: int | None = None,
        packing: bool = False,
        feature_cache: FeatureReader | None = None,
        distill_tiles: bool = True,
    ):
        self.packing = packing
        tokenizer = processor.tokenizer
        self.pad_token_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        size = processor.image_processor.crop_size
        self.blank: dict[str, Any] = {"pixel_values": torch.zeros(1, 3, size["height"], size["width"])}
        self.has_tiles = processor.image_grid_pinpoints is not None
        self.distill_tiles = distill_tiles
        if self.has_tiles:
            one = torch.ones(1, dtype=torch.long)
            self.blank |= {"image_sizes": one.expand(1, 2), "num_tiles": one}
        if teacher_image_size is not None:
            blank = torch.zeros(1, 3, teacher_image_size, teacher_image_size, dtype=torch.uint8)
            self.blank["teacher_images"] = blank
        if feature_cache is not None:
            self.blank["teacher_features"] = feature_cache.blank()

    def __call__(self, samples: list[dict]) -> dict:
        """
        Returns:
            `dict` with `input_ids`, `attention_mask` and `labels` of shape `(batch_size, sequence_length)`, or packed
            `input_ids`, `position_ids` and `labels` of shape `(1, num_tokens)`;
            `label_index` of shape `(num_labels,)`, the positions of the labels in the flattened batch;
            `prompt_ids` and `prompt_mask` of shape `(batch_size, num_prompt_tokens)`; `pixel_values`, whose first
            dimension is all squares of the batch; with tiles, `image_sizes` of shape `(num_images, 2)`; `image_index`
            of shape `(num_squares,)`, the sample of each square, -1 for a blank one; `teacher_images` or
            `teacher_features` of all squares or, with `distilled_index` of shape `(num_distilled,)`, of these alone;
            and `record_ids`, a list of text, which stays on the host.
        """

        def pad(name: str, value: int) -> torch.Tensor:
            return pad_sequence([sample[name] for sample in samples], batch_first=True, padding_value=value)

        prompt_ids = pad("prompt_ids", self.pad_token_id)
        prompt_lengths = torch.tensor([len(sample["prompt_ids"]) for sample in samples])
        lengths = [len(sample["input_ids"]) for sample in samples]
        if self.packing:
            text = {name: torch.cat([sample[name] for sample in samples])[None] for name in ("input_ids", "labels")}
            text["position_ids"] = torch.cat([torch.arange(length) for length in lengths])[None]
        else:
            text = {"input_ids": pad("input_ids", self.pad_token_id), "labels": pad("labels", IGNORE_INDEX)}
            text["attention_mask"] = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
        with_images = [(index, sample) for index, sample in enumerate(samples) if "pixel_values" in sample]
        image_index = [index for index, sample in with_images for _ in sample["pixel_values"]]
        parts = {name: [sample[name] for _, sample in with_images] or [blank] for name, blank in self.blank.items()}
        images = {name: join(values) for name, values in parts.items()}
        if self.has_tiles:
            num_tiles = images.pop("num_tiles")
            if not self.distill_tiles:
                images["distilled_index"] = num_tiles.cumsum(0) - num_tiles
        return {
            **text,
            "label_index": (text["labels"].flatten() != IGNORE_INDEX).nonzero().squeeze(-1),
            "prompt_ids": prompt_ids,
            "prompt_mask": torch.arange(prompt_ids.shape[1]) < prompt_lengths[:, None],
            "image_index": torch.tensor(image_index or [-1]),
            **images,
            "record_ids": [sample["record_id"] for sample in samples],
        }
