"""A conversation as tokens that know what they are: answers to learn, instructions to score by, images, the rest."""

import re
from bisect import bisect_left
from dataclasses import dataclass

from transformers.utils.chat_template_utils import render_jinja_template

from ..processing.processing_hawaii import HawaiiProcessor


# Private-use characters, which no text of a data set holds, mark what the user says through the rendering.
BEGIN, END = "\ue000", "\ue001"
MARK = re.compile(f"[{BEGIN}{END}]")
GENERATION = re.compile(r"{%-?\s*generation\s*-?%}")


@dataclass
class TokenizedConversation:
    """
    Args:
        input_ids (`list[int]`):
            Tokens, each image token expanded to one for each of its patches.
        is_answer (`list[bool]`):
            Which of them the model learns to say: the assistant's turns, as the template marks them.
        is_prompt (`list[bool]`):
            Which of them are an instruction: what the user says, without the template's words.
    """

    input_ids: list[int]
    is_answer: list[bool]
    is_prompt: list[bool]


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
            raise ValueError(f'a turn is {turn!r}; it must be {{"from": "human" or "gpt", "value": text}}')
        try:
            turn["value"].encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"a turn is {turn!r}, which no tokenizer takes ({error.reason})") from error
        if turn["from"] == "gpt" and not messages:
            continue
        text = MARK.sub("", turn["value"])
        content = [{"type": "image"}] * text.count("<image>") if turn["from"] == "human" else []
        text = text.replace("<image>", "").strip()
        content = content + ([{"type": "text", "text": text}] if text else [])
        messages.append({"role": "user" if turn["from"] == "human" else "assistant", "content": content})
    if not any(message["role"] == "assistant" and message["content"] for message in messages):
        raise ValueError("it has no answer to learn")
    num_tokens = sum(item["type"] == "image" for message in messages for item in message["content"])
    if num_tokens != num_images:
        raise ValueError(f"its conversation has {num_tokens} <image> but it has {num_images} images")
    return messages


def _mark(item: dict, role: str) -> dict:
    return {**item, "text": f"{BEGIN}{item['text']}{END}"} if role == "user" and item["type"] == "text" else item


def _cover(text: str, spans: list[tuple[int, int]]) -> bytearray:
    """One for each character that lies in a span, else zero."""
    cover = bytearray(len(text))
    for start, end in spans:
        cover[start:end] = b"\x01" * (end - start)
    return cover


def tokenize_conversation(messages: list[dict], processor: HawaiiProcessor) -> TokenizedConversation:
    """
    Renders and tokenizes a conversation with the processor's chat template.

    Which tokens are answers comes from the template's generation markers, through the tokenizer's offsets: nothing is
    searched for in the text.

    Raises:
        ValueError: the template marks no answers, or loses images or parts of what the user says; or the tokenizer
            does not take `<image>` for one token.
    """
    tokenizer, template = processor.tokenizer, processor.chat_template
    if not isinstance(template, str) or not GENERATION.search(template):
        raise ValueError(
            "The chat template does not mark what the assistant says, so there is nothing to learn from; put "
            "{% generation %} and {% endgeneration %} around it, or name a template that has them, such as vicuna_v1."
        )
    marked = [
        {**message, "content": [_mark(item, message["role"]) for item in message["content"]]} for message in messages
    ]
    rendered, spans = render_jinja_template(
        [marked], chat_template=template, return_assistant_tokens_mask=True, **tokenizer.special_tokens_map
    )
    marks = [match.start() for match in MARK.finditer(rendered[0])]
    text = MARK.sub("", rendered[0])
    num_images = sum(item["type"] == "image" for message in messages for item in message["content"])
    if text.count(processor.image_token) != num_images or rendered[0].count(BEGIN) != rendered[0].count(END):
        raise ValueError(
            "The chat template cuts what the user says or shows another number of images; it must take a message's "
            "content as a list of items of type image or text, and put <image> for the one and the whole text for the "
            "other."
        )

    def moved(position: int) -> int:
        return position - bisect_left(marks, position)

    answers = _cover(text, [(moved(start), moved(end)) for start, end in spans[0]])
    instructions = _cover(text, [(moved(start), moved(end)) for start, end in zip(marks[::2], marks[1::2])])

    has_own_bos = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
    encoding = tokenizer(text, add_special_tokens=not has_own_bos, return_offsets_mapping=True)
    num_tokens = encoding["input_ids"].count(processor.image_token_id)
    if num_tokens != num_images:
        raise ValueError(
            f"the tokenizer makes {num_tokens} image tokens of {num_images} images; make {processor.image_token} one "
            "of its special tokens"
        )
    result = TokenizedConversation([], [], [])
    for token, (start, end) in zip(encoding["input_ids"], encoding["offset_mapping"]):
        if token == processor.image_token_id:
            result.input_ids += [token] * processor.num_image_tokens
            result.is_answer += [False] * processor.num_image_tokens
            result.is_prompt += [False] * processor.num_image_tokens
            continue
        result.input_ids.append(token)
        result.is_answer.append(1 in answers[start:end])
        result.is_prompt.append(1 in instructions[start:end])
    return result
