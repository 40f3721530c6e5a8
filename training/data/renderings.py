"""Renders conversations with a chat template and locates the instructions and the answers in the text."""

import re
from bisect import bisect_left
from dataclasses import dataclass

from transformers.utils.chat_template_utils import render_jinja_template

from ...files.user_error import UserError
from ...processing.processing_hawaii import HawaiiProcessor


# Private-use characters, which are removed from the data, mark the user's text and the end of the assistant's text in
# a rendering.
BEGIN, END, SAID = "\ue000", "\ue001", "\ue002"
MARK = re.compile(f"[{BEGIN}{END}{SAID}]")
GENERATION = re.compile(r"{%-?\s*generation\s*-?%}")


@dataclass
class Rendering:
    """
    A rendered conversation; positions are characters of `text`.

    Args:
        text (`str`):
            The conversation, with one image token per image.
        instructions (`list[tuple[int, int]]`):
            Spans of the user's text.
        answers (`list[tuple[int, int | None]]`):
            Spans to learn; the end is `None` if the template has no generation markers.
        said (`list[int]`):
            End of the assistant's text in each of its turns.
    """

    text: str
    instructions: list[tuple[int, int]]
    answers: list[tuple[int, int | None]]
    said: list[int]


def _mark(message: dict) -> dict:
    content = message["content"]
    if message["role"] == "assistant":
        # No mark at the start: a template may check whether an answer begins with a thought.
        text = content[-1]["text"] if content else ""
        return {**message, "content": [*content[:-1], {"type": "text", "text": text + SAID}]}
    marked = [{**item, "text": f"{BEGIN}{item['text']}{END}"} if item["type"] == "text" else item for item in content]
    return {**message, "content": marked}


def _template_of(processor: HawaiiProcessor) -> str:
    if not isinstance(processor.chat_template, str):
        raise UserError("The processor has no chat template; give it one, such as vicuna_v1.")
    return processor.chat_template


def _render(messages: list[dict], processor: HawaiiProcessor, **kwargs) -> tuple[str, list[tuple[int, int]]]:
    """Returns the text of a conversation and, if requested, the spans between the template's generation markers."""
    template = _template_of(processor)
    try:
        texts, spans = render_jinja_template(
            [messages], chat_template=template, **kwargs, **processor.tokenizer.special_tokens_map
        )
    except Exception as error:  # a template is a program and can raise anything
        raise UserError(f"the chat template rejects its conversation ({error})") from error
    return texts[0], spans[0] if spans else []


def _render_without_markers(messages: list[dict], processor: HawaiiProcessor) -> tuple[str, list[tuple[int, None]]]:
    """Returns the text of a conversation; an answer begins at the end of the prompt for it."""
    turns = [turn for turn, message in enumerate(messages) if message["role"] == "assistant"]
    for _ in range(2):  # a template may print the date, which may change between two renderings
        text, _ = _render(messages, processor)
        prompts = [_render(messages[:turn], processor, add_generation_prompt=True)[0] for turn in turns]
        if all(text.startswith(prompt) for prompt in prompts):
            break
    else:
        raise UserError(
            "The chat template renders the text before an answer differently without the answer, so the start of the "
            "answer is unknown; put {% generation %} and {% endgeneration %} around the assistant's text, or name "
            "another template, such as vicuna_v1."
        )
    if text.count(SAID) != len(turns):
        raise UserError(
            f"The chat template shows the ends of {text.count(SAID)} answers but there are {len(turns)}; name another "
            "one, such as vicuna_v1."
        )
    return text, [(len(prompt), None) for prompt in prompts]


def _check_shown(rendered: str, messages: list[dict], processor: HawaiiProcessor) -> None:
    num_images = sum(item["type"] == "image" for message in messages for item in message["content"])
    if rendered.count(processor.image_token) != num_images or rendered.count(BEGIN) != rendered.count(END):
        raise UserError(
            "The chat template truncates the user's text or shows another number of images; it must accept a "
            "message's content as a list of items of type image or text, and render "
            f"{processor.image_token} for an image and the complete text for a text."
        )


def render_prompt(messages: list[dict], processor: HawaiiProcessor) -> str:
    """
    Renders the prompt for an answer, as in inference.

    Args:
        messages (`list[dict]`):
            As [`chat_messages`] returns them, up to the question.
        processor (`HawaiiProcessor`):
            Has the chat template.

    Raises:
        UserError: There is no template, or it rejects the conversation or shows another number of images.
    """
    text, _ = _render(messages, processor, add_generation_prompt=True)
    _check_shown(text, messages, processor)
    return text


def render_conversation(messages: list[dict], processor: HawaiiProcessor) -> Rendering:
    """
    Renders a conversation with the processor's chat template.

    The answers are the text between the template's generation markers. If it has none, an answer begins at the end of
    the template's prompt for it, as in inference.

    Args:
        messages (`list[dict]`):
            As [`chat_messages`] returns them.
        processor (`HawaiiProcessor`):
            Has the chat template.

    Raises:
        UserError: There is no template, or it rejects the conversation, shows another number of images, truncates the
            user's text, or renders the prompt for an answer differently from the conversation.
    """
    marked = [_mark(message) for message in messages]
    if GENERATION.search(_template_of(processor)):
        rendered, answers = _render(marked, processor, return_assistant_tokens_mask=True)
    else:
        rendered, answers = _render_without_markers(marked, processor)
    _check_shown(rendered, messages, processor)
    marks = [match.start() for match in MARK.finditer(rendered)]

    def moved(position: int) -> int:
        return position - bisect_left(marks, position)

    begun, ended, said = ([moved(place) for place in marks if rendered[place] == mark] for mark in (BEGIN, END, SAID))
    return Rendering(
        text=MARK.sub("", rendered),
        instructions=list(zip(begun, ended)),
        answers=[(moved(start), end if end is None else moved(end)) for start, end in answers],
        said=said,
    )
