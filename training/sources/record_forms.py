"""
The two forms of a conversation: LLaVA's `conversations` of `{"from": "human" or "gpt", "value": text}`, and the
`messages` of OpenAI and transformers, `{"role": "user", "assistant" or "system", "content": text or list of items}`.
"""

from typing import Any, NamedTuple

from .record import Message, Record, short_repr


ROLES = {"human": "user", "gpt": "assistant"}
IMAGE_PLACEHOLDER = "<image>"
TURN_FORM = '{"from": "human" or "gpt", "value": text}'
MESSAGE_FORM = '{"role": "user" or "assistant", "content": text, or a list of items of type text and image}'


def _make_message(role: str, text: str, num_images: int = 0) -> Message:
    """Returns a message; placeholders of images anywhere in a user's text are moved to its front."""
    num_images += text.count(IMAGE_PLACEHOLDER) if role == "user" else 0
    return Message(role, text.replace(IMAGE_PLACEHOLDER, "").strip(), num_images)


class RepeatedName(NamedTuple):
    """Replaces an object that has a name twice, because one of the values is lost."""

    name: str


def parse_object(pairs: list[tuple[str, Any]]) -> Message | dict | RepeatedName:
    """
    Converts a turn of LLaVA's form; returns any other object unchanged. Called by the JSON parser, since the
    dictionaries of all turns would need twice the memory.
    """
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        return RepeatedName(next(name for name in names if names.count(name) > 1))
    return parse_turn(value)


def parse_turn(value: dict) -> Message | dict:
    """Converts a turn of LLaVA's form; returns any other object unchanged."""
    speaker, text = value.get("from"), value.get("value")
    if not (isinstance(text, str) and isinstance(speaker, str) and speaker in ROLES):
        return value
    return _make_message(ROLES[speaker], text)


def _parse_message(value: Any) -> tuple[Message, list] | None:
    """Returns a message of the chat form with the images that are written in it, or `None` if it has another form."""
    if not isinstance(value, dict) or value.get("role") not in ("user", "assistant", "system"):
        return None
    content = value.get("content")
    if isinstance(content, str):
        return _make_message(value["role"], content), []
    if not isinstance(content, list):
        return None
    texts, images, num_images = [], [], 0
    for item in content:
        kind = item.get("type") if isinstance(item, dict) else None
        if kind == "text" and isinstance(item.get("text"), str):
            texts.append(item["text"])
        elif kind in ("image", "image_url") and value["role"] == "user":
            num_images += 1
            address = item.get("image_url")
            address = address.get("url") if isinstance(address, dict) else address
            given = (item.get("image"), item.get("path"), item.get("url"), address)
            images += [image for image in given if is_given(image)][:1]
        else:
            return None
    return _make_message(value["role"], "".join(texts), num_images), images


def is_given(value: Any) -> bool:
    """Whether a field has a value: tables have empty text or NaN in a row without one."""
    return not (value is None or (isinstance(value, str) and not value.strip()) or value != value)


def _parse_conversation(turns: list, is_chat: bool, images: tuple) -> tuple[list[Message], tuple, str | None]:
    """Returns the messages, the images and the problem of a conversation."""
    messages, written = [], []
    for turn in turns:
        if isinstance(turn, RepeatedName):
            return [], images, f"a turn has the field {turn.name!r} twice"
        if is_chat:
            parsed = _parse_message(turn)
            if parsed is None:
                return [], images, f"a message is {short_repr(turn)}; it must be {MESSAGE_FORM}"
            messages.append(parsed[0])
            written += parsed[1]
            other = [image for image in parsed[1] if not isinstance(image, str)]
            if other:
                problem = f"a message contains {short_repr(other[0])} instead of an image's path; use a column images"
                return [], images, problem
        else:
            message = parse_turn(turn) if isinstance(turn, dict) else turn
            if not isinstance(message, Message):
                return [], images, f"a turn is {short_repr(turn)}; it must be {TURN_FORM}"
            messages.append(message)
    return messages, images or tuple(written), None


def make_record(value: Any, index: int) -> Record:
    """
    Converts one JSON value, or the row of a table. Turns may already be messages.

    An `<image>` anywhere in a turn of the user is moved to its front; turns of the assistant before the first one of
    the user are dropped. Images of a chat whose messages show none precede its first question. The id of a record
    without one is its index in the file.
    """
    if isinstance(value, RepeatedName):
        return Record(index, (), problem=f"it has the field {value.name!r} twice", is_readable=False)
    if not isinstance(value, dict):
        return Record(index, (), problem=f"it is {short_repr(value)}, not a JSON object", is_readable=False)
    value = {name: field for name, field in value.items() if is_given(field)}
    given = [field if isinstance(field, list) else [field] for field in (value.get("image"), value.get("images"))]
    image, images = (tuple(filter(is_given, field)) for field in given)
    record_id = value.get("id", index)
    if isinstance(record_id, list | dict | RepeatedName):
        record_id = short_repr(record_id)
    fields = {"id": record_id, "question_type": value.get("question_type")}
    if image and images and image != images:
        problem = "it has different images in image and in images"
        return Record(**fields, images=(), problem=problem, is_readable=False)
    images = image or images
    is_chat = "conversations" not in value and "messages" in value
    turns = value.get("messages" if is_chat else "conversations")
    if not isinstance(turns, list):
        name = "messages" if is_chat else "conversations"
        return Record(**fields, images=images, problem=f"it has no list of {name}")
    messages, images, problem = _parse_conversation(turns, is_chat, images)
    if problem is not None:
        return Record(**fields, images=images, problem=problem)
    first = next((turn for turn, message in enumerate(messages) if message.role == "user"), len(messages))
    if is_chat and images and first < len(messages) and not any(message.num_images for message in messages):
        messages[first] = messages[first]._replace(num_images=len(images))
    instructions = [message for message in messages[:first] if message.role == "system"]
    return Record(**fields, images=images, messages=(*instructions, *messages[first:]))
