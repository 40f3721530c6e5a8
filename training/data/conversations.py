"""Tokenizes conversations and labels the tokens of answers and of instructions."""

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import repeat

from transformers import PreTrainedTokenizerBase

from ...files.user_error import UserError
from ...processing.processing_hawaii import HawaiiProcessor
from ..sources.record import Message
from .renderings import MARK, Rendering, render_conversation, render_prompt


@dataclass
class TokenizedConversation:
    """
    Args:
        input_ids (`list[int]`):
            Tokens, each image token repeated once per feature of the image.
        is_answer (`list[bool]`):
            Whether the model learns the token: the assistant's turns and the tokens that end them.
        is_prompt (`list[bool]`):
            Whether the token is part of an instruction: the user's text, without that of the template.
        end_ids (`set[int]`):
            Special tokens that end answers; empty if the template ends them only with text.
    """

    input_ids: list[int]
    is_answer: list[bool]
    is_prompt: list[bool]
    end_ids: set[int]


def clean_text(text: str) -> str:
    """Returns the text without private-use characters, which mark positions in a rendering, and outer white space."""
    return MARK.sub("", text).strip()


def chat_messages(messages: Sequence[Message]) -> list[dict]:
    """Returns a chat template's messages: a role, and a content of image items and then a text item."""
    result = []
    for message in messages:
        text = clean_text(message.text)
        content = [{"type": "image"}] * message.num_images + ([{"type": "text", "text": text}] if text else [])
        result.append({"role": message.role, "content": content})
    return result


@lru_cache(maxsize=8)
def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Returns the added tokens, except blank ones, which some tokenizers have for indented code."""
    return frozenset(index for index, token in tokenizer.added_tokens_decoder.items() if token.content.strip())


def _tokenize(
    text: str, messages: Sequence[Message], processor: HawaiiProcessor
) -> tuple[list[int], list[tuple[int, int]]]:
    """Returns the tokens of a rendered conversation and each token's span of text."""
    tokenizer = processor.tokenizer
    starts_with_bos = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
    encoding = tokenizer(text, add_special_tokens=not starts_with_bos, return_offsets_mapping=True)
    num_images = sum(message.num_images for message in messages)
    num_tokens = encoding["input_ids"].count(processor.image_token_id)
    if num_tokens != num_images:
        raise UserError(
            f"the tokenizer makes {num_tokens} image tokens of {num_images} images; make {processor.image_token} one "
            "of its special tokens"
        )
    offsets, previous_end = [], 0
    for start, end in encoding["offset_mapping"]:
        # Some tokenizers trim spaces from offsets, which leaves an empty span for a token of only spaces.
        offsets.append((min(previous_end, start) if start == end else start, end))
        previous_end = end
    return encoding["input_ids"], offsets


def _find_end_tokens(
    input_ids: list[int], offsets: list[tuple[int, int]], rendering: Rendering, processor: HawaiiProcessor
) -> list[int | None]:
    """
    Returns the index of the token that ends each answer: the first special token after the answer's text, or `None`
    if user text or an image comes first.
    """
    special, ends, index = _special_tokens(processor.tokenizer), [], 0
    user_starts = [*(start for start, _ in rendering.instructions), math.inf]
    for answer_end in rendering.answer_ends:
        next_user_text = user_starts[bisect_left(user_starts, answer_end)]
        while index < len(input_ids) and (offsets[index][0] < answer_end or input_ids[index] not in special):
            index += 1
        has_end = index < len(input_ids) and input_ids[index] != processor.image_token_id
        ends.append(index if has_end and offsets[index][0] < next_user_text else None)
    return ends


def _cover(text: str, spans: list[tuple[int, int]]) -> bytearray:
    """Returns one for each character inside a span, else zero."""
    cover = bytearray(len(text))
    for start, end in spans:
        cover[start:end] = b"\x01" * (end - start)
    return cover


def _repeats(
    input_ids: list[int], processor: HawaiiProcessor, num_image_tokens: Sequence[int] | None
) -> Iterator[int]:
    """Yields how often each token is repeated: the k-th image token `num_image_tokens[k]` times."""
    counts = repeat(processor.num_image_tokens) if num_image_tokens is None else iter(num_image_tokens)
    for token in input_ids:
        yield next(counts) if token == processor.image_token_id else 1


def tokenize_prompt(
    messages: Sequence[Message], processor: HawaiiProcessor, num_image_tokens: Sequence[int] | None = None
) -> list[int]:
    """
    Tokenizes the prompt for an answer to the last message as in inference; arguments as for [`tokenize_conversation`].

    Raises:
        UserError: The template does not fit, or the image token is not one token of the tokenizer.
    """
    input_ids, _ = _tokenize(render_prompt(chat_messages(messages), processor), messages, processor)
    repeats = _repeats(input_ids, processor, num_image_tokens)
    return [token for token, number in zip(input_ids, repeats) for _ in range(number)]


def tokenize_conversation(
    messages: Sequence[Message], processor: HawaiiProcessor, num_image_tokens: Sequence[int] | None = None
) -> TokenizedConversation:
    """
    Renders and tokenizes a conversation with the processor's chat template.

    The template defines the answers (see [`render_conversation`]) and the tokenizer's offsets map them to tokens:
    the text is never searched. If the template has no generation markers, an answer ends with the first special token
    after the assistant's text.

    Args:
        messages (`Sequence[Message]`):
            The conversation.
        processor (`HawaiiProcessor`):
            Its processor.
        num_image_tokens (`Sequence[int]`, *optional*):
            Number of tokens of each image, see [`HawaiiProcessor.count_image_tokens`]; those of one square each if not
            given.

    Raises:
        UserError: The template does not fit or puts no special token after an answer, or the image token is not one
            token of the tokenizer.
    """
    rendering = render_conversation(chat_messages(messages), processor)
    input_ids, offsets = _tokenize(rendering.text, messages, processor)
    end_tokens = _find_end_tokens(input_ids, offsets, rendering, processor)
    answers = rendering.answers
    if any(end is None for _, end in answers):
        starts = [start for start, _ in answers]
        answers = [(start, offsets[index][1]) for start, index in zip(starts, end_tokens) if index is not None]
        if len(answers) < len(starts):
            raise UserError(
                "The chat template puts no special token of the tokenizer after an answer, so the model would not "
                "learn to stop; put {% generation %} and {% endgeneration %} around the assistant's text, or name "
                "another template, such as vicuna_v1."
            )
    ending = set(end_tokens)
    in_answer, in_instruction = _cover(rendering.text, answers), _cover(rendering.text, rendering.instructions)

    result = TokenizedConversation([], [], [], set())
    repeats = _repeats(input_ids, processor, num_image_tokens)
    for index, (token, (start, end), num_repeats) in enumerate(zip(input_ids, offsets, repeats)):
        is_image = token == processor.image_token_id
        is_answer = 1 in in_answer[start:end] and not is_image
        result.input_ids += [token] * num_repeats
        result.is_answer += [is_answer] * num_repeats
        result.is_prompt += [1 in in_instruction[start:end] and not is_image] * num_repeats
        if is_answer and index in ending:
            result.end_ids.add(token)
    return result
