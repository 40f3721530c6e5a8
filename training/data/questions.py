"""Evaluation questions as prompts, each with its correct answer."""

import torch
from torch.nn.utils.rnn import pad_sequence

from ...files.user_error import UserError
from ...processing.processing_hawaii import HawaiiProcessor
from .conversations import clean_text, tokenize_conversation, tokenize_prompt
from .record import Record
from .records import RecordDataset


class QuestionDataset(RecordDataset):
    """
    Prompts of a data file with one question per record. No record is skipped: scores of different numbers of questions
    are not comparable.

    Args:
        data_path, image_folder, processor:
            As for [`RecordDataset`].

    Attributes:
        references (`list[str]`):
            The correct answers.
        question_types (`list[str]`, *optional*):
            The records' `question_type`; `None` if no record has one.
        prompts (`list[torch.LongTensor]`):
            Tokens of each prompt.
        max_new_tokens (`int`):
            Length of the longest correct answer with its end, and one more for a final period, which is ignored.

    Raises:
        UserError: As for [`RecordDataset`], or only some records have a type, or the chat template does not mark the
            end of an answer.
    """

    processor: HawaiiProcessor

    def __init__(self, data_path: str, image_folder: str, processor: HawaiiProcessor):
        super().__init__(data_path, image_folder, processor)
        self.references, self.prompts, lengths = [], [], []
        for index, record in enumerate(self.records):
            try:
                conversation = tokenize_conversation(record.messages, self.processor)
                prompt = tokenize_prompt(record.messages[:-1], self.processor)
            except ValueError as error:
                raise self._error(index, error) from error
            if not conversation.end_ids:
                raise UserError(
                    f"{data_path} cannot be answered: the chat template puts no special token after an answer, so "
                    "generation would not stop. Name eval_data_path and eval_strategy under a stage that learns to "
                    "answer, as in stages.finetune.eval_data_path."
                )
            self.references.append(clean_text(record.messages[-1].text))
            self.prompts.append(torch.tensor(prompt))
            lengths.append(sum(conversation.is_answer))
        self.max_new_tokens = max(lengths) + 1
        self.question_types = self._question_types()

    def _question_types(self) -> list[str] | None:
        types = [record.question_type for record in self.records]
        missing = [index for index, question_type in enumerate(types) if not isinstance(question_type, str)]
        if not missing:
            return types
        if any(question_type is not None for question_type in types):
            name = self.records[missing[0]].id
            raise UserError(
                f"{self.data_path}, record {name!r}: its question_type is {types[missing[0]]!r}, but others have "
                "one; give every record a text, or none."
            )
        return None

    def _problem(self, record: Record) -> str | None:
        problem = super()._problem(record)
        if problem is not None:
            return problem
        roles = [message.role for message in record.messages]
        if roles == ["user", "assistant"]:
            return None
        return f"it has {len(roles)} turns, not one question and its answer; make one record per question"

    def _read(self, index: int) -> dict:
        """`{"index", "input_ids"}`, and `pixel_values` of shape `(num_images, 3, image_size, image_size)`."""
        sample = {"index": index, "input_ids": self.prompts[index]}
        squares = self._read_squares(self.records[index].images)
        return {**sample, "pixel_values": self._pixel_values(squares)} if squares else sample


class PromptCollator:
    """
    Pads prompts to a batch, on the left, since the answers follow directly.

    Args:
        pad_token_id (`int`):
            Token to pad with.
    """

    def __init__(self, pad_token_id: int):
        self.pad_token_id = pad_token_id

    def __call__(self, samples: list[dict]) -> tuple[list[int], dict[str, torch.Tensor]]:
        """
        Returns:
            The indices of the questions; and `input_ids` and `attention_mask` of shape `(batch_size, sequence_length)`
            and, if there are images, `pixel_values`, whose first dimension is all images of the batch.
        """
        prompts = [sample["input_ids"] for sample in samples]
        inputs = {
            "input_ids": pad_sequence(prompts, batch_first=True, padding_value=self.pad_token_id, padding_side="left"),
            "attention_mask": pad_sequence(
                [torch.ones_like(prompt) for prompt in prompts], batch_first=True, padding_side="left"
            ),
        }
        images = [sample["pixel_values"] for sample in samples if "pixel_values" in sample]
        if images:
            inputs["pixel_values"] = torch.cat(images)
        return [sample["index"] for sample in samples], inputs
