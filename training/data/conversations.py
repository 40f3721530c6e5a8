"""A conversation as tokens that know what they are: answers to learn, instructions to score by, images, the rest."""

import math
from dataclasses import dataclass
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

from ...files.user_error import UserError
from ...processing.processing_hawaii import HawaiiProcessor
from .renderings import MARK, render_conversation, render_prompt


@dataclass
class TokenizedConversation:
    """
    Args:
        input_ids (`list[int]`):
            Tokens, each image token expanded to one for each of its patches.
        is_answer (`list[bool]`):
            Which of them the model learns to say: the assistant's turns and what ends them.
        is_prompt (`list[bool]`):
            Which of them are an instruction: what the user says, without the template's words.
        end_ids (`set[int]`):
            The special tokens among them that end answers; none where the template ends them with text alone.
    """

    input_ids: list[int]
    is_answer: list[bool]
    is_prompt: list[bool]
    end_ids: set[int]


def read_messages(turns: list[dict], num_images: int) -> list[dict]:
    """
    LLaVA's turns as a chat template's messages.

    A first turn that is not the user's is dropped, an `<image>` anywhere in a turn is moved to its front.

    Args:
        turns (`list[dict]`):
            `{"from": "human" or "gpt", "value": text}` each.
        num_images (`int`):
            Images of the sample.

    Raises:
        ValueError: no turns, a speaker of another name, half a character, no answer, or another number of `<image>`
            than of images.
    """
    messages = []
    for turn in turns:
        is_turn = (
            isinstance(turn, dict) and turn.get("from") in ("human", "gpt") and isinstance(turn.get("value"), str)
        )
        if not is_turn:
            raise UserError(f'a turn is {turn!r}; it must be {{"from": "human" or "gpt", "value": text}}')
        try:
            turn["value"].encode()
        except UnicodeEncodeError as error:
            raise UserError(f"a turn is {turn!r}, which no tokenizer takes ({error.reason})") from error
        if turn["from"] == "gpt" and not messages:
            continue
        text = MARK.sub("", turn["value"])
        content = [{"type": "image"}] * text.count("<image>") if turn["from"] == "human" else []
        text = text.replace("<image>", "").strip()
        content = content + ([{"type": "text", "text": text}] if text else [])
        messages.append({"role": "user" if turn["from"] == "human" else "assistant", "content": content})
    if not any(message["role"] == "assistant" and message["content"] for message in messages):
        raise UserError("it has no answer to learn")
    num_tokens = sum(item["type"] == "image" for message in messages for item in message["content"])
    if num_tokens != num_images:
        raise UserError(f"its conversation has {num_tokens} <image> but it has {num_images} images")
    return messages


@lru_cache(maxsize=8)
def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens that a tokenizer never makes of parts; blank ones, which some have for indented code, end nothing."""
    return frozenset(index for index, token in tokenizer.added_tokens_decoder.items() if token.content.strip())


def _tokenize(text: str, messages: list[dict], processor: HawaiiProcessor) -> tuple[list[int], list[tuple[int, int]]]:
    """The tokens of a rendered conversation and where in its text each begins and ends."""
    tokenizer = processor.tokenizer
    has_own_bos = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
    encoding = tokenizer(text, add_special_tokens=not has_own_bos, return_offsets_mapping=True)
    num_images = sum(item["type"] == "image" for message in messages for item in message["content"])
    num_tokens = encoding["input_ids"].count(processor.image_token_id)
    if num_tokens != num_images:
        raise UserError(
            f"the tokenizer makes {num_tokens} image tokens of {num_images} images; make {processor.image_token} one "
            "of its special tokens"
        )
    offsets, before = [], 0
    for start, end in encoding["offset_mapping"]:
        # Some tokenizers cut spaces off, and leave nothing of a token that is all spaces.
        offsets.append((min(before, start) if start == end else start, end))
        before = end
    return encoding["input_ids"], offsets


def _num_repeats(token: int, processor: HawaiiProcessor) -> int:
    """How often a token of the text stands in the model's input: an image's once for each patch."""
    return processor.num_image_tokens if token == processor.image_token_id else 1


def _find_ends(
    input_ids: list[int],
    offsets: list[tuple[int, int]],
    said: list[int],
    begun: list[int],
    processor: HawaiiProcessor,
) -> list[int | None]:
    """
    The place of the token that ends each answer: the first special one after its words, unless the user's words or
    images come before it.
    """
    special, ends, place = _special_tokens(processor.tokenizer), [], 0
    for position in said:
        limit = next((start for start in begun if start >= position), math.inf)
        while place < len(input_ids) and (offsets[place][0] < position or input_ids[place] not in special):
            place += 1
        is_end = place < len(input_ids) and offsets[place][0] < limit and input_ids[place] != processor.image_token_id
        ends.append(place if is_end else None)
    return ends


def _close(
    answers: list[tuple[int, int | None]], ends: list[int | None], offsets: list[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Lets each answer go up to where the token that ends it does."""
    closed = []
    for (start, _), place in zip(answers, ends):
        if place is None:
            raise UserError(
                "The chat template puts no special token of the tokenizer behind an answer, so the model would not "
                "learn to stop; put {% generation %} and {% endgeneration %} around what the assistant says, or name "
                "another template, such as vicuna_v1."
            )
        closed.append((start, offsets[place][1]))
    return closed


def _cover(text: str, spans: list[tuple[int, int]]) -> bytearray:
    """One for each character that lies in a span, else zero."""
    cover = bytearray(len(text))
    for start, end in spans:
        cover[start:end] = b"\x01" * (end - start)
    return cover


def tokenize_prompt(messages: list[dict], processor: HawaiiProcessor) -> list[int]:
    """
    The tokens after which an answer begins, each image token expanded, as when the model is used.

    Args:
        messages (`list[dict]`):
            As [`read_messages`] gives them, up to the question.
        processor (`HawaiiProcessor`):
            Has the chat template.

    Raises:
        ValueError: the template does not fit, or the tokenizer does not take `<image>` for one token.
    """
    input_ids, _ = _tokenize(render_prompt(messages, processor), messages, processor)
    return [token for token in input_ids for _ in range(_num_repeats(token, processor))]


def tokenize_conversation(messages: list[dict], processor: HawaiiProcessor) -> TokenizedConversation:
    """
    Renders and tokenizes a conversation with the processor's chat template.

    Which tokens are answers comes from the template (see [`render_conversation`]), through the tokenizer's offsets:
    nothing is searched for in the text. Where the template has no generation markers, an answer goes up to the first
    special token after the assistant's words.

    Raises:
        ValueError: the template does not fit, or puts no special token behind an answer; or the tokenizer does not
            take `<image>` for one token.
    """
    rendering = render_conversation(messages, processor)
    text = rendering.text
    input_ids, offsets = _tokenize(text, messages, processor)
    begun = [start for start, _ in rendering.instructions]
    ends = _find_ends(input_ids, offsets, rendering.said, begun, processor)
    answers = rendering.answers
    if any(end is None for _, end in answers):
        answers = _close(answers, ends, offsets)
    in_answer, in_instruction = _cover(text, answers), _cover(text, rendering.instructions)

    result = TokenizedConversation([], [], [], set())
    for place, (token, (start, end)) in enumerate(zip(input_ids, offsets)):
        is_image = token == processor.image_token_id
        num_repeats = _num_repeats(token, processor)
        is_answer = 1 in in_answer[start:end] and not is_image
        result.input_ids += [token] * num_repeats
        result.is_answer += [is_answer] * num_repeats
        result.is_prompt += [1 in in_instruction[start:end] and not is_image] * num_repeats
        if is_answer and place in ends:
            result.end_ids.add(token)
    return result
