"""What the page asks of a model."""

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from html import escape, unescape
from typing import Any

from PIL import Image

from .conversation import leave_out_image_words, replace_half_characters, stream_answer
from .drawing import draw_importance, draw_routing
from .pictures import open_upload
from .routing_map import RoutingMap, count_adapters, map_routing, name_adapters
from .visitor_error import VisitorError


# Of an image and a question: the picture over which maps are drawn, and grids of shares by title.
ScoreImportance = Callable[[Image.Image, str], tuple[Image.Image, Mapping[str, Sequence[Sequence[float]]]]]
LONGEST_CONVERSATION = 200_000  # characters; more would keep the model from other visitors while they are counted


def show(role: str, text: str) -> dict:
    """
    Returns a message of the page's conversation. Gradio shows it as HTML, which could make a visitor's browser load
    what an answer names.
    """
    return {"role": role, "content": escape(text, quote=False)}


def explain(error: Exception) -> str:
    """Returns an error as a sentence for the page. All but a `VisitorError` are logged with their traceback."""
    message = str(error)
    if not isinstance(error, VisitorError):
        traceback.print_exception(error)
        message = f"The model failed ({type(error).__name__}); the log of the server says where."
    return f'<p class="hawaii-error" role="alert">{escape(message)}</p>'


def read_conversation(processor: Any, history: Sequence[Mapping], image: Any) -> list[dict]:
    """
    Converts the page's conversation to transformers' format.

    Args:
        processor (`ProcessorMixin`):
            Processor of the model.
        history (`Sequence[Mapping]`):
            Messages of Gradio's chat, see [`show`], which ends with a question. A question that was stopped before its
            answer is left out.
        image (`PIL.Image.Image`, *optional*):
            The picture, which is part of the first question.

    Raises:
        VisitorError: the conversation has more than `LONGEST_CONVERSATION` characters.
    """
    messages, length = [], 0
    for message in history:
        content = message["content"]
        text = unescape(content if isinstance(content, str) else "".join(part["text"] for part in content))
        length += len(text)
        if length > LONGEST_CONVERSATION:
            raise VisitorError(
                f"The conversation has more than {LONGEST_CONVERSATION:,} characters; start a new one, or shorten the "
                "question."
            )
        text = leave_out_image_words(processor, text)
        if messages and messages[-1]["role"] == message["role"]:
            messages.pop()
        if text or message["role"] == "user":
            messages.append({"role": message["role"], "content": [{"type": "text", "text": text}]})
    if image is not None:
        messages[0]["content"].insert(0, {"type": "image", "image": image})
    return messages


class Answerer:
    """
    What the page asks of a model. It has no state: visitors' pictures and conversations are in their sessions.

    Args:
        model, processor:
            A model that generates text from images and text, and its processor.
        facts (`Mapping[str, Any]`):
            The facts about training, the content of `training.json`; empty if they are not known.
        score_importance (`ScoreImportance`, *optional*):
            Computes maps of the patches' importance.
    """

    def __init__(self, model: Any, processor: Any, facts: Mapping, score_importance: ScoreImportance | None = None):
        self.model, self.processor, self.score_importance = model, processor, score_importance
        vision_config = getattr(model.config, "vision_config", None)
        self.names = name_adapters(count_adapters(vision_config), facts)
        self.num_layers = vision_config.num_hidden_layers if self.names else 1

    def look(self, upload: dict | None) -> tuple[str, RoutingMap | None, str]:
        """
        Opens an uploaded picture and maps the routing of all layers, in one pass of the encoder.

        Args:
            upload (`dict`, *optional*):
                Value of Gradio's image component as the browser sends it. Gradio has checked that it is an upload.

        Returns:
            The path of the picture, which needs less memory than the picture and is empty without one, its routing,
            and an error for the page.
        """
        if upload is None:
            return "", None, ""
        try:
            image = open_upload(self.processor, upload["path"] or "")
            routing = map_routing(self.model, self.processor, image, self.names) if self.names else None
        except Exception as error:  # logged by `explain`; the page stays usable
            return "", None, explain(error)
        return upload["path"], routing, ""

    def _open(self, path: str | None) -> Image.Image | None:
        """Opens the picture of a session; without the session, the page still shows a picture that is not here."""
        if path is None:
            raise VisitorError("This page was not used for long, and the server has forgotten its picture. Reload it.")
        return open_upload(self.processor, path) if path else None

    def answer(self, question: str, history: list[dict], path: str | None) -> Iterator[tuple[str, list[dict], str]]:
        """Yields the question's field, the conversation and an error for the page, each time the answer has grown."""
        if not question.strip():
            yield question, history, ""
            return
        question = replace_half_characters(question)
        asked, text = [*history, show("user", question)], ""
        yield "", asked, ""
        try:
            image = self._open(path)
            messages = read_conversation(self.processor, asked, image)
            with closing(stream_answer(self.model, self.processor, messages)) as pieces:
                for piece in pieces:
                    text += piece
                    yield "", [*asked, show("assistant", text.strip())], ""
            if not text.strip():
                raise VisitorError("The answer is empty; ask in another way.")
        except Exception as error:  # logged by `explain`; the question can be corrected and asked again
            yield question, history, explain(error)

    def draw_routing(self, routing: RoutingMap | None, bank: str, layer: int, is_over_all: bool) -> str:
        """Draws the map of a bank in a layer, or over all layers; says why if there is none."""
        if not self.names:
            return "<p>The encoder of this model has no adapters, so no router chooses one.</p>"
        if routing is None:
            return "<p>Upload a picture to see which adapter acts at each of its patches.</p>"
        return draw_routing(routing, bank, None if is_over_all else int(layer))

    def draw_importance(self, path: str | None, question: str, history: list[dict]) -> str:
        """Draws the importance of the patches for the question in its field, or else for the last one asked."""
        assert self.score_importance is not None  # the page has no button otherwise
        try:
            asked = show("user", replace_half_characters(question))
            messages = read_conversation(self.processor, [*history, asked], None)
            texts = [message["content"][0]["text"].strip() for message in messages if message["role"] == "user"]
            question = next(filter(None, reversed(texts)), "")
            image = self._open(path)
            if image is None:
                raise VisitorError("There is no picture; upload one first.")
            return draw_importance(*self.score_importance(image, question))
        except Exception as error:  # logged by `explain`; the page stays usable
            return explain(error)
