"""Evaluation questions as prompts, each with its correct answer."""

import torch
from torch.nn.utils.rnn import pad_sequence

from ...files.user_error import UserError
from ...processing.processing_hawaii import HawaiiProcessor
from ..sources.record import Record
from .conversations import clean_text, tokenize_conversation, tokenize_prompt
from .records import RecordDataset


class QuestionDataset(RecordDataset):
    """
    Prompts of a data file with one question per record. No record is skipped: scores of different numbers of questions
    are not comparable.

    Args:
        data_path, image_folder, processor, follow_links:
            As for [`RecordDataset`].

    Attributes:
        references (`list[str]`):
            The correct answers.
        question_types (`list[str]`, *optional*):
            The records' `question_type`; `None` if no record has one.
        prompts (`list[torch.LongTensor]`):
            Tokens of each prompt.
        max_new_tokens (`int`):
            Number of tokens of the longest correct answer with its end token, plus one for a final period, which
            scores ignore.

    Raises:
        UserError: As for [`RecordDataset`], or only some records have a type, or the chat template does not mark the
            end of an answer.
    """

    processor: HawaiiProcessor
    kind = "questions"
    hint = "remove it from the file"

    def __init__(self, data_path: str, image_folder: str, processor: HawaiiProcessor, follow_links: bool = True):
        super().__init__(data_path, image_folder, processor, follow_links=follow_links)
        self.references, self.prompts, lengths = [], [], []
        for index, record in enumerate(self.records):
            try:
                num_image_tokens = self.count_image_tokens(record)
                conversation = tokenize_conversation(record.messages, self.processor, num_image_tokens)
                prompt = tokenize_prompt(record.messages[:-1], self.processor, num_image_tokens)
            except UserError as error:
                raise UserError(f"{self._name_record(index, error)}. Fix it, or {self.hint}.") from error
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
        if all(question_type is None for question_type in types):
            return None
        for record in self.records:
            if not isinstance(record.question_type, str):
                raise UserError(
                    f"{self.data_path}, record {record.id!r}: its question_type is {record.question_type!r}, but "
                    "others have one; give every record a question_type, or none."
                )
        return types

    def _find_problem(self, record: Record) -> str | None:
        problem = super()._find_problem(record)
        if problem is None and [message.role for message in record.messages] != ["user", "assistant"]:
            return (
                f"it has {len(record.messages)} turns, not one question and its answer; make one record per question"
            )
        return problem

    def make_sample(self, record: Record) -> dict:
        """Returns the images of the record."""
        return self._read_images(record)

    def _read(self, index: int) -> dict:
        """Returns `index`, `input_ids` and, if the record has images, those of [`RecordReader`]."""
        return {"index": index, "input_ids": self.prompts[index], **super()._read(index)}


def collate_prompts(samples: list[dict], pad_token_id: int) -> tuple[list[int], dict[str, torch.Tensor]]:
    """
    Pads prompts to a batch, on the left, since the answers follow directly.

    Returns:
        The indices of the questions; and `input_ids` and `attention_mask` of shape `(batch_size, sequence_length)`
        and, if there are images, `pixel_values`, whose first dimension is all squares of the batch, and with tiles
        `image_sizes` of shape `(num_images, 2)`.
    """
    prompts = [sample["input_ids"] for sample in samples]
    masks = [torch.ones_like(prompt) for prompt in prompts]
    inputs = {
        "input_ids": pad_sequence(prompts, batch_first=True, padding_value=pad_token_id, padding_side="left"),
        "attention_mask": pad_sequence(masks, batch_first=True, padding_side="left"),
    }
    for name in ("pixel_values", "image_sizes"):
        images = [sample[name] for sample in samples if name in sample]
        if images:
            inputs[name] = torch.cat(images)
    return [sample["index"] for sample in samples], inputs
