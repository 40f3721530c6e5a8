"""The questions that a stage is measured by, each with its right answer: LLaVA's JSON to prompts."""

import torch
from torch.nn.utils.rnn import pad_sequence

from ...files.user_error import UserError
from ...processing.processing_hawaii import HawaiiProcessor
from .conversations import read_messages, tokenize_conversation, tokenize_prompt
from .records import RecordDataset, image_paths


class QuestionDataset(RecordDataset):
    """
    Prompts of a LLaVA JSON file whose records ask one question each. None is skipped: a score of fewer questions would
    be another score.

    Args:
        data_path, image_folder, processor:
            As for [`RecordDataset`].

    Attributes:
        references (`list[str]`):
            The right answers.
        question_types (`list[str]`, *optional*):
            The records' `question_type`; `None` where they have none.
        prompts (`list[torch.LongTensor]`):
            The tokens after which each answer begins.
        max_new_tokens (`int`):
            Room for the longest right answer, for what ends it, and for a period that is forgiven.

    Raises:
        FileNotFoundError: the data file or the folder is missing.
        ValueError: records cannot be used, only some have a type, or the chat template does not tell where an answer
            ends.
    """

    processor: HawaiiProcessor

    def __init__(self, data_path: str, image_folder: str, processor: HawaiiProcessor):
        super().__init__(data_path, image_folder, processor)
        self.references, self.prompts, lengths = [], [], []
        for index, record in enumerate(self.records):
            messages = read_messages(record["conversations"], len(image_paths(record)))
            try:
                conversation = tokenize_conversation(messages, self.processor)
                prompt = tokenize_prompt(messages[:-1], self.processor)
            except ValueError as error:
                raise self._error(index, error) from error
            if not conversation.end_ids:
                raise UserError(
                    f"{data_path} cannot be answered: the chat template puts no special token behind an answer, so "
                    "nothing tells where one ends. Name eval_data_path and eval_strategy under a stage that learns to "
                    "answer, as in stages.finetune.eval_data_path."
                )
            self.references.append(messages[-1]["content"][-1]["text"])
            self.prompts.append(torch.tensor(prompt))
            lengths.append(sum(conversation.is_answer))
        self.max_new_tokens = max(lengths) + 1
        self.question_types = self._question_types()

    def _question_types(self) -> list[str] | None:
        types = [record.get("question_type") for record in self.records]
        missing = [index for index, question_type in enumerate(types) if not isinstance(question_type, str)]
        if not missing:
            return types
        if any(question_type is not None for question_type in types):
            name = self.records[missing[0]]["id"]
            raise UserError(
                f"{self.data_path}, record {name!r}: its question_type is {types[missing[0]]!r}, where others have "
                "one; give every record one, in words, or none."
            )
        return None

    def _problem(self, record) -> str | None:
        problem = super()._problem(record)
        if problem is not None:
            return problem
        roles = [message["role"] for message in read_messages(record["conversations"], len(image_paths(record)))]
        if roles == ["user", "assistant"]:
            return None
        return f"it has {len(roles)} turns, where a question and its answer are asked for; make a record of each"

    def _read(self, index: int) -> dict:
        """`{"index", "input_ids"}`, and `pixel_values` of shape `(num_images, 3, image_size, image_size)`."""
        sample = {"index": index, "input_ids": self.prompts[index]}
        squares = self._read_squares(image_paths(self.records[index]))
        return {**sample, "pixel_values": self._pixel_values(squares)} if squares else sample


class PromptCollator:
    """
    Pads prompts to a batch, on the left: answers begin right after them.

    Args:
        pad_token_id (`int`):
            What is put there.
    """

    def __init__(self, pad_token_id: int):
        self.pad_token_id = pad_token_id

    def __call__(self, samples: list[dict]) -> tuple[list[int], dict[str, torch.Tensor]]:
        """
        Returns:
            The numbers of the questions; and `input_ids` and `attention_mask` of shape `(batch_size, sequence_length)`
            with, where there are images, `pixel_values`, whose first dimension are all images of the batch.
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
