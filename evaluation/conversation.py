"""A conversation with a model: its turns, and the images of the next question."""

import logging
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import torch
from PIL import Image

from ..files.user_error import UserError, explain_errors
from ..hub_cards.space.hawaii_space.conversation import leave_out_image_words, replace_half_characters, stream_answer
from ..processing.chat_templates.limits import check_rendering


logger = logging.getLogger(__name__)


def _make_message(role: str, text: str, images: list[Image.Image]) -> dict:
    items = [{"type": "image", "image": image} for image in images]
    return {"role": role, "content": [*items, {"type": "text", "text": text}]}


class Conversation:
    """
    Args:
        model (`PreTrainedModel`):
            A model that generates text from images and text.
        processor (`ProcessorMixin`):
            Its processor.
        name (`str`):
            The model in errors.
        max_new_tokens (`int`):
            Maximum length of an answer.

    Attributes:
        messages (`list[dict]`):
            The answered questions and their answers, in transformers' format.
        images (`list[PIL.Image.Image]`):
            Images of the next question.
    """

    def __init__(self, model: Any, processor: Any, name: str, max_new_tokens: int):
        self.model, self.processor, self.name, self.max_new_tokens = model, processor, name, max_new_tokens
        self.messages: list[dict] = []
        self.images: list[Image.Image] = []

    def forget(self) -> None:
        """Starts again, without turns and images."""
        self.messages, self.images = [], []

    def ask(self, question: str) -> Iterator[str]:
        """
        Answers a question about all images of the conversation with greedy decoding.

        Closing the iterator stops the answer, and the part that was generated remains in the conversation. A question
        without any part of an answer, because of an error or an early stop, is forgotten; its images wait for the next
        question.

        Yields:
            `str`: Pieces of the answer, as they are generated.

        Raises:
            UserError: The chat template cannot render the conversation, an image cannot be processed, or the model has
                too few positions or too little memory for the conversation.
        """
        # An argument of a command that is not UTF-8 has half characters.
        question = leave_out_image_words(self.processor, replace_half_characters(question))
        messages = [*self.messages, _make_message("user", question, self.images)]
        self._check_chat_template(messages)
        answer, is_complete = "", False
        pieces = stream_answer(self.model, self.processor, messages, self.max_new_tokens)
        try:
            with closing(pieces), explain_errors(types=(ValueError, torch.OutOfMemoryError)):
                for piece in pieces:
                    answer += piece
                    yield piece
            is_complete = True
        finally:
            if answer or is_complete:
                answer = leave_out_image_words(self.processor, answer.strip())
                self.messages, self.images = [*messages, _make_message("assistant", answer, [])], []

    def _check_chat_template(self, messages: list[dict]) -> None:
        """
        Logs a warning if the template leaves out the first question, as that of stage 1 does.

        Raises:
            UserError: The template loops, fails, or leaves out a later question or earlier turns.
        """
        subject, template = f"The chat template of {self.name}", self.processor.chat_template
        if isinstance(template, str):
            items = [
                [item if item["type"] == "text" else {"type": "image"} for item in turn["content"]]
                for turn in messages
            ]
            shown = [{**turn, "content": content} for turn, content in zip(messages, items)]
            check_rendering(template, self.processor.tokenizer.special_tokens_map, [shown], subject)
        place = f" at question {len(messages) // 2 + 1} of the conversation" if self.messages else ""
        with explain_errors(f"{subject} fails{place}"):  # a template is a program and may raise anything
            prompt = self.processor.apply_chat_template(messages, tokenize=False)
            for index, left_out in ((-1, "the question"), (0, "the first question")):
                changed = list(messages)
                *images, text = changed[index]["content"]
                text = {**text, "text": f"{text['text']}?"}
                changed[index] = {**changed[index], "content": [*images, text]}
                if self.processor.apply_chat_template(changed, tokenize=False) != prompt:
                    continue
                problem = f"{subject} leaves out {left_out}, so the model does not read it"
                if not self.messages:
                    logger.warning("%s.", problem)
                    break
                raise UserError(
                    f"{problem}. Use a folder that was trained with conversations, or start a new conversation."
                )
