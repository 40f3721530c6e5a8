"""Samples of conversations about images, and their batches."""

from contextlib import suppress

import torch
from torch.nn.utils.rnn import pad_sequence

from ...files.user_error import UserError
from ...processing.processing_hawaii import HawaiiProcessor
from .conversations import chat_messages, tokenize_conversation
from .records import RecordDataset


IGNORE_INDEX = -100


class ConversationDataset(RecordDataset):
    """
    Conversations to learn from. A sample that is too long raises when it is read.

    Args:
        max_length (`int`, *optional*, defaults to 2048):
            Longer samples are truncated.
        args, kwargs:
            As for [`RecordDataset`].
    """

    processor: HawaiiProcessor
    kind = "conversations"

    def __init__(self, *args, max_length: int = 2048, **kwargs):
        self.max_length = max_length
        super().__init__(*args, **kwargs)

    def _check_options(self) -> list[str]:
        return [str(self.max_length)]

    @property
    def question(self) -> str:
        """The first question of the first record; empty for captions without questions."""
        content = chat_messages(self.records[0].messages[:1])[0]["content"]
        return "".join(item["text"] for item in content if item["type"] == "text")

    def lengths(self) -> list[int]:
        """
        The number of tokens of each sample, without reading its images; 0 if it cannot be tokenized. A check has
        counted them already.
        """
        if self.checked is not None:
            return [min(self.max_length, self.checked.num_tokens[index]) for index in self.row_numbers]
        result = []
        for record in self.records:
            with suppress(UserError):
                result.append(
                    min(self.max_length, len(tokenize_conversation(record.messages, self.processor).input_ids))
                )
                continue
            result.append(0)
        return result

    def _read(self, index: int) -> dict:
        """
        Returns:
            `dict` with `input_ids`, `labels` (-100 outside of answers) and `prompt_ids`, each one-dimensional, the
            images of [`RecordDataset`], and `record_id`, as text for errors.

        Raises:
            UserError: An image is broken, or no label is left after truncation.
        """
        record = self.records[index]
        conversation = tokenize_conversation(record.messages, self.processor)
        input_ids = torch.tensor(conversation.input_ids[: self.max_length])
        is_answer = torch.tensor(conversation.is_answer[: self.max_length])
        is_prompt = torch.tensor(conversation.is_prompt[: self.max_length])
        labels = input_ids.where(is_answer, IGNORE_INDEX)
        labels[0] = IGNORE_INDEX  # has no context, so the model has no prediction for it and must not count it
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
            **self._read_images(record),
            "record_id": repr(record.id),
        }


class Collator:
    """
    Pads samples to a batch, on the right.

    A batch without images gets a blank one without tokens: in a sharded run every rank must run the encoder, or the
    others wait forever.

    Args:
        processor, teacher_image_size:
            As for [`ConversationDataset`].
    """

    def __init__(self, processor: HawaiiProcessor, teacher_image_size: int | None = None):
        tokenizer = processor.tokenizer
        self.pad_token_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        size = processor.image_processor.crop_size
        self.blank = {"pixel_values": torch.zeros(1, 3, size["height"], size["width"])}
        if teacher_image_size is not None:
            blank = torch.zeros(1, 3, teacher_image_size, teacher_image_size, dtype=torch.uint8)
            self.blank["teacher_images"] = blank

    def __call__(self, samples: list[dict]) -> dict:
        """
        Returns:
            `dict` with `input_ids`, `attention_mask` and `labels` of shape `(batch_size, sequence_length)`;
            `prompt_ids` and `prompt_mask` of shape `(batch_size, num_prompt_tokens)`; `pixel_values` and
            `teacher_images`, whose first dimension is all images of the batch; `image_index` of shape
            `(num_images,)`, the sample of each image, -1 for a blank one; and `record_ids`, a list of text, which
            stays on the host.
        """

        def pad(name: str, value: int) -> torch.Tensor:
            return pad_sequence([sample[name] for sample in samples], batch_first=True, padding_value=value)

        input_ids, prompt_ids = pad("input_ids", self.pad_token_id), pad("prompt_ids", self.pad_token_id)
        lengths = torch.tensor([len(sample["input_ids"]) for sample in samples])
        prompt_lengths = torch.tensor([len(sample["prompt_ids"]) for sample in samples])
        with_images = [(index, sample) for index, sample in enumerate(samples) if "pixel_values" in sample]
        image_index = [index for index, sample in with_images for _ in sample["pixel_values"]]
        images = {name: [sample[name] for _, sample in with_images] or [blank] for name, blank in self.blank.items()}
        return {
            "input_ids": input_ids,
            "attention_mask": (torch.arange(input_ids.shape[1]) < lengths[:, None]).long(),
            "labels": pad("labels", IGNORE_INDEX),
            "prompt_ids": prompt_ids,
            "prompt_mask": torch.arange(prompt_ids.shape[1]) < prompt_lengths[:, None],
            "image_index": torch.tensor(image_index or [-1]),
            **{name: torch.cat(tensors) for name, tensors in images.items()},
            "record_ids": [sample["record_id"] for sample in samples],
        }
