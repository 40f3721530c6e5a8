"""A conversation as its chat template shows it, and where in it lies what the user says and what is to be learned."""

import re
from bisect import bisect_left
from dataclasses import dataclass

from transformers.utils.chat_template_utils import render_jinja_template

from ...files.user_error import UserError
from ...processing.processing_hawaii import HawaiiProcessor


# Private-use characters, which no text of a data set holds, mark through the rendering what the user says and where
# what the assistant says ends.
BEGIN, END, SAID = "\ue000", "\ue001", "\ue002"
MARK = re.compile(f"[{BEGIN}{END}{SAID}]")
GENERATION = re.compile(r"{%-?\s*generation\s*-?%}")


@dataclass
class Rendering:
    """
    Positions are those of characters of `text`.

    Args:
        text (`str`):
            The conversation, an image token for each image.
        instructions (`list[tuple[int, int]]`):
            Where what the user says begins and ends.
        answers (`list[tuple[int, int | None]]`):
            Where what is to be learned begins and ends; the end is `None` where the template does not tell.
        said (`list[int]`):
            Where the assistant's own words end, in each of its turns.
    """

    text: str
    instructions: list[tuple[int, int]]
    answers: list[tuple[int, int | None]]
    said: list[int]


def _mark(message: dict) -> dict:
    content = message["content"]
    if message["role"] == "assistant":
        # No mark in front: a template may look whether an answer begins with a thought.
        text = content[-1]["text"] if content else ""
        return {**message, "content": [*content[:-1], {"type": "text", "text": text + SAID}]}
    marked = [{**item, "text": f"{BEGIN}{item['text']}{END}"} if item["type"] == "text" else item for item in content]
    return {**message, "content": marked}


def _template_of(processor: HawaiiProcessor) -> str:
    if not isinstance(processor.chat_template, str):
        raise UserError("The processor has no chat template; give it one, such as vicuna_v1.")
    return processor.chat_template


def _render(messages: list[dict], processor: HawaiiProcessor, **kwargs) -> tuple[str, list[tuple[int, int]]]:
    """The text of a conversation, and the spans between the template's generation markers where they are asked for."""
    template = _template_of(processor)
    try:
        texts, spans = render_jinja_template(
            [messages], chat_template=template, **kwargs, **processor.tokenizer.special_tokens_map
        )
    except Exception as error:  # templates are programs and fail as those do
        raise UserError(f"the chat template does not take its conversation ({error})") from error
    return texts[0], spans[0] if spans else []


def _render_without_markers(messages: list[dict], processor: HawaiiProcessor) -> tuple[str, list[tuple[int, None]]]:
    """The text of a conversation; answers begin where the template ends when it prompts for them."""
    turns = [turn for turn, message in enumerate(messages) if message["role"] == "assistant"]
    for _ in range(2):  # a template may tell the date, and midnight may fall between two renderings
        text, _ = _render(messages, processor)
        prompts = [_render(messages[:turn], processor, add_generation_prompt=True)[0] for turn in turns]
        if all(text.startswith(prompt) for prompt in prompts):
            break
    else:
        raise UserError(
            "The chat template shows what comes before an answer in another way once the answer is there, so where "
            "the answer begins cannot be told; put {% generation %} and {% endgeneration %} around what the assistant "
            "says, or name another template, such as vicuna_v1."
        )
    if text.count(SAID) != len(turns):
        raise UserError(
            f"The chat template shows {text.count(SAID)} of {len(turns)} answers to their end; name another one, such "
            "as vicuna_v1."
        )
    return text, [(len(prompt), None) for prompt in prompts]


def _check_shown(rendered: str, messages: list[dict], processor: HawaiiProcessor) -> None:
    num_images = sum(item["type"] == "image" for message in messages for item in message["content"])
    if rendered.count(processor.image_token) != num_images or rendered.count(BEGIN) != rendered.count(END):
        raise UserError(
            "The chat template cuts what the user says or shows another number of images; it must take a message's "
            "content as a list of items of type image or text, and put <image> for the one and the whole text for the "
            "other."
        )


def render_prompt(messages: list[dict], processor: HawaiiProcessor) -> str:
    """
    The text after which an answer begins, as when the model is used.

    Args:
        messages (`list[dict]`):
            As [`read_messages`] gives them, up to the question.
        processor (`HawaiiProcessor`):
            Has the chat template.

    Raises:
        ValueError: there is no template, or it refuses the conversation or shows another number of images.
    """
    text, _ = _render(messages, processor, add_generation_prompt=True)
    _check_shown(text, messages, processor)
    return text


def render_conversation(messages: list[dict], processor: HawaiiProcessor) -> Rendering:
    """
    Renders a conversation with the processor's chat template.

    What is to be learned stands between the template's generation markers. Where it has none, an answer begins where
    the template ends when it prompts for that answer, as it will when the model is used.

    Args:
        messages (`list[dict]`):
            As [`read_messages`] gives them.
        processor (`HawaiiProcessor`):
            Has the chat template.

    Raises:
        ValueError: there is no template, or it refuses the conversation, shows another number of images, cuts what
            the user says, or shows what precedes an answer in another way than it prompts for it.
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
