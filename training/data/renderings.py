"""Renders conversations with a chat template and locates the instructions and the answers in the text."""

import re
from bisect import bisect_left
from dataclasses import dataclass

from transformers.utils.chat_template_utils import render_jinja_template

from ...files.user_error import UserError
from ...processing.processing_hawaii import HawaiiProcessor


# Private-use characters, which are removed from the data, mark the user's text and the end of the assistant's text in
# a rendering.
USER_START, USER_END, ANSWER_END = "\ue000", "\ue001", "\ue002"
MARK = re.compile(f"[{USER_START}{USER_END}{ANSWER_END}]")
GENERATION = re.compile(r"{%-?\s*generation\s*-?%}")
# Of the turns of one kind, the numbers of first turns, whose prompts are short, and of last turns that are rendered.
NUM_FIRST, NUM_LAST = 16, 2


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
        answer_ends (`list[int]`):
            End of the assistant's text in each of its turns.
    """

    text: str
    instructions: list[tuple[int, int]]
    answers: list[tuple[int, int | None]]
    answer_ends: list[int]


def _mark(message: dict) -> dict:
    content = message["content"]
    if message["role"] == "system":
        return message  # neither an instruction of the user nor an answer
    if message["role"] == "assistant":
        # No mark at the start: a template may check whether an answer begins with a thought.
        text = content[-1]["text"] if content else ""
        return {**message, "content": [*content[:-1], {"type": "text", "text": text + ANSWER_END}]}
    marked = [{**item, "text": USER_START + item["text"] + USER_END} if "text" in item else item for item in content]
    return {**message, "content": marked}


def _render(messages: list[dict], processor: HawaiiProcessor, **kwargs) -> tuple[str, list[tuple[int, int]]]:
    """Returns the text of a conversation and, if requested, the spans between the template's generation markers."""
    if not isinstance(processor.chat_template, str):
        raise UserError("The processor has no chat template; give it one, such as vicuna_v1.")
    try:
        texts, spans = render_jinja_template(
            [messages], chat_template=processor.chat_template, **kwargs, **processor.tokenizer.special_tokens_map
        )
    except Exception as error:  # a template is a program and can raise anything
        raise UserError(f"the chat template rejects its conversation ({error})") from error
    return texts[0], spans[0] if spans else []


def _kinds_of_turns(messages: list[dict], anchors: dict[int, int]) -> dict[tuple, list[int]]:
    """
    Groups the assistant's turns by whether a mark precedes them, and by the message before: its role, its number of
    items, and whether one of them is text.
    """
    kinds: dict[tuple, list[int]] = {}
    for turn, message in enumerate(messages):
        if message["role"] == "assistant":
            previous = messages[turn - 1] if turn else {"role": None, "content": []}
            content = previous["content"]
            kind = (turn in anchors, previous["role"], len(content), any("text" in item for item in content))
            kinds.setdefault(kind, []).append(turn)
    return kinds


def _find_starts(text: str, messages: list[dict], processor: HawaiiProcessor) -> dict[int, int] | None:
    """
    Returns the position in `text` at which each turn of the assistant begins, the end of its prompt; `None` if a
    prompt is not the start of the text.

    Prompts are as long as the conversation, so rendering all of them would take quadratic time. Only the first and the
    last turns of a kind are rendered. The template writes the same texts between the last mark and the answer in the
    other turns: where one of these texts is found, the answer begins after it. Turns with none of them, or with
    several, are rendered as well.
    """
    marks = [match.start() for match in MARK.finditer(text)]
    ends = [position for position in marks if text[position] == ANSWER_END]
    turns = [turn for turn, message in enumerate(messages) if message["role"] == "assistant"]
    # The end of the last mark before the end of an answer.
    anchors = {turn: marks[bisect_left(marks, end) - 1] + 1 for turn, end in zip(turns, ends) if end > marks[0]}
    starts: dict[int, int] = {}

    def render_prompts(turns: list[int]) -> bool:
        for turn in turns:
            prompt, _ = _render(messages[:turn], processor, add_generation_prompt=True)
            if not text.startswith(prompt):
                return False
            starts[turn] = len(prompt)
        return True

    for turns in _kinds_of_turns(messages, anchors).values():
        rendered = [*turns[:NUM_FIRST], *turns[NUM_FIRST:][-NUM_LAST:]]
        if not render_prompts(rendered):
            return None
        gaps = {text[anchors[turn] : starts[turn]] for turn in rendered if turn in anchors}
        for turn in turns[NUM_FIRST:-NUM_LAST]:
            found = [gap for gap in gaps if turn in anchors and text.startswith(gap, anchors[turn])]
            if len(found) == 1 and found[0]:
                starts[turn] = anchors[turn] + len(found[0])
                continue
            if not render_prompts([turn]):
                return None
            if turn in anchors:
                gaps.add(text[anchors[turn] : starts[turn]])
    return starts


def _render_without_markers(messages: list[dict], processor: HawaiiProcessor) -> tuple[str, list[tuple[int, None]]]:
    """Returns the text of a conversation and its answers, which begin at the end of their prompts."""
    num_answers = sum(message["role"] == "assistant" for message in messages)
    for _ in range(2):  # a template may print the date, which may change between two renderings
        text, _ = _render(messages, processor)
        starts = _find_starts(text, messages, processor)
        if starts is not None:
            break
    else:
        raise UserError(
            "The chat template renders the text before an answer differently without the answer, so the start of the "
            "answer is unknown; put {% generation %} and {% endgeneration %} around the assistant's text, or name "
            "another template, such as vicuna_v1."
        )
    if text.count(ANSWER_END) != num_answers:
        raise UserError(
            f"The chat template shows the ends of {text.count(ANSWER_END)} answers but there are {num_answers}; name "
            "another one, such as vicuna_v1."
        )
    return text, [(starts[turn], None) for turn in sorted(starts)]


def _check_is_complete(rendered: str, messages: list[dict], processor: HawaiiProcessor) -> None:
    num_images = sum(item["type"] == "image" for message in messages for item in message["content"])
    if rendered.count(processor.image_token) != num_images or rendered.count(USER_START) != rendered.count(USER_END):
        raise UserError(
            "The chat template truncates the user's text or shows another number of images; it must accept a "
            "message's content as a list of items of type image or text, and render "
            f"{processor.image_token} for an image and the complete text for a text."
        )


def render_prompt(messages: list[dict], processor: HawaiiProcessor) -> str:
    """
    Renders the prompt for an answer, as in inference, from the messages of [`chat_messages`] up to the question.

    Raises:
        UserError: There is no template, or it rejects the conversation or shows another number of images.
    """
    text, _ = _render(messages, processor, add_generation_prompt=True)
    _check_is_complete(text, messages, processor)
    return text


def render_conversation(messages: list[dict], processor: HawaiiProcessor) -> Rendering:
    """
    Renders the messages of [`chat_messages`] with the processor's chat template.

    The answers are the text between the template's generation markers. If it has none, an answer begins at the end of
    the template's prompt for it, as in inference.

    Raises:
        UserError: There is no template, or it rejects the conversation, shows another number of images, truncates the
            user's text, or renders the prompt for an answer differently from the conversation.
    """
    marked = [_mark(message) for message in messages]
    if GENERATION.search(str(processor.chat_template)):
        rendered, answers = _render(marked, processor, return_assistant_tokens_mask=True)
    else:
        rendered, answers = _render_without_markers(marked, processor)
    _check_is_complete(rendered, messages, processor)
    marks = [match.start() for match in MARK.finditer(rendered)]

    def unmarked(position: int) -> int:
        return position - bisect_left(marks, position)

    starts, ends, answer_ends = (
        [unmarked(position) for position in marks if rendered[position] == mark]
        for mark in (USER_START, USER_END, ANSWER_END)
    )
    return Rendering(
        text=MARK.sub("", rendered),
        instructions=list(zip(starts, ends)),
        answers=[(unmarked(start), None if end is None else unmarked(end)) for start, end in answers],
        answer_ends=answer_ends,
    )
