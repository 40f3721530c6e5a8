"""Data sets with all rows of a file, good and bad, to check whether training can use each row."""

from contextlib import suppress
from typing import NamedTuple

import torch

from ...files.user_error import UserError
from ...processing.processing_hawaii import HawaiiProcessor
from ..data.conversation_dataset import ConversationDataset
from ..data.conversations import tokenize_conversation, tokenize_prompt
from ..data.images import ImageDataset
from ..data.questions import QuestionDataset
from ..data.records import RecordDataset
from ..sources.record import Record
from ..sources.record_table import RecordTable


LONGEST_PROBLEM = 600


class Row(NamedTuple):
    """
    Args:
        num_images (`int`), num_turns (`int`), num_tokens (`int`), num_tiles (`int`):
            As in [`CheckedRows`].
        problem (`str`, *optional*):
            The reason why the row cannot be used.
    """

    num_images: int = 0
    num_turns: int = 0
    num_tokens: int = 0
    num_tiles: int = 0
    problem: str | None = None


class AllRows(RecordDataset):
    """Keeps bad rows, and prepares images as training does, one at a time. A mixin for the data sets of training."""

    def _check(self, records: RecordTable) -> RecordTable:
        return records

    def _read_images(self, record: Record) -> dict:
        sizes = []
        for image in record.images:  # one at a time, so that a record with many images needs the memory of one
            sizes.append(self._read_image(image, self.read_content(image)).get("image_sizes"))
        return {} if None in sizes or not sizes else {"image_sizes": torch.cat(sizes)}

    def _count_sample(self, record: Record, sample: dict) -> int:
        return 0

    def _count_tiles(self, record: Record, sample: dict) -> int:
        sizes = sample["image_sizes"].tolist() if "image_sizes" in sample else self.read_image_sizes(record)
        if sizes is None:
            return len(record.images)
        processor = self.processor
        assert isinstance(processor, HawaiiProcessor)  # there are no tiles without text
        return sum(processor.count_tiles(sizes))

    def inspect(self, index: int) -> Row:
        """Reads a row as training would."""
        record, sample = self.records[index], {}
        problem, num_tokens, num_tiles = self._find_problem(record), 0, len(record.images)
        # Also for a row with a bad image, because the image may be replaced; but tiles depend on the image's size.
        is_counted = problem is None or self.processor.image_processor.image_grid_pinpoints is None
        if problem is None:
            try:
                sample = self.make_sample(record)
            except UserError as error:
                problem = str(error).removesuffix(".")
        if is_counted and record.messages:
            with suppress(UserError, UnicodeError):
                num_tiles = self._count_tiles(record, sample)
                num_tokens = self._count_sample(record, sample)
        if problem is not None and len(problem) > LONGEST_PROBLEM:  # it quotes a very long value
            problem = f"{problem[: LONGEST_PROBLEM // 2]} ... {problem[-LONGEST_PROBLEM // 2 :]}"
        return Row(len(record.images), len(record.messages), num_tokens, num_tiles, problem)


class AllConversations(AllRows, ConversationDataset):
    """All conversations of a file."""

    def _count_sample(self, record: Record, sample: dict) -> int:
        num_tokens = len(sample.get("input_ids", ()))
        if 0 < num_tokens < self.max_length:
            return num_tokens
        # The sample is truncated or bad.
        num_image_tokens = self.count_image_tokens(record)
        return len(tokenize_conversation(record.messages, self.processor, num_image_tokens).input_ids)


class AllImages(AllRows, ImageDataset):
    """All images of a file or folder."""


class AllQuestions(AllRows, QuestionDataset):
    """All questions of a file."""

    def __init__(self, *args, **kwargs):
        RecordDataset.__init__(self, *args, **kwargs)

    def _count_sample(self, record: Record, sample: dict) -> int:
        return len(sample["input_ids"]) if sample else 0

    def make_sample(self, record: Record) -> dict:
        """Returns `input_ids`, the tokens of the prompt."""
        num_image_tokens = self.count_image_tokens(record)
        tokenize_conversation(record.messages, self.processor, num_image_tokens)
        input_ids = tokenize_prompt(record.messages[:-1], self.processor, num_image_tokens)
        return {"input_ids": input_ids, **self._read_images(record)}
