"""Renders a conversation with a chat template that may be wrong."""

from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template


def render_or_describe(template: str, messages: list[dict], **kwargs: Any) -> str:
    """
    Renders a conversation. If the template raises an error, such as one that rejects system messages, returns its type
    and text instead.

    Args:
        template (`str`):
            Jinja template.
        messages (`list[dict]`):
            The conversation.
        kwargs:
            Special tokens by name, and `add_generation_prompt`.

    Raises:
        MemoryError: the text is too large.
    """
    try:
        return render_jinja_template([messages], chat_template=template, **kwargs)[0][0]
    except MemoryError:
        raise
    except Exception as error:  # a template is a program and may raise anything
        return f"{type(error).__name__}: {error}"
