"""Chat templates: `plain` (stage 1), `vicuna_v1` (stage 2), and a language model's template adapted to images."""

from pathlib import Path

from ...files.user_error import UserError, explain_errors
from ..processing_hawaii import IMAGE_TOKEN
from .limits import check_once
from .rendering import render_or_describe


FOLDER = Path(__file__).parent
# Preamble for templates whose messages contain strings; HAWAII's messages contain lists of images and text.
STRING_CONTENT = "_string_content.jinja"
PROBE = "which of them is it?"


def load_chat_template(name_or_path: str) -> str:
    """
    Reads a chat template.

    Args:
        name_or_path (`str`):
            `"plain"`, `"vicuna_v1"`, or the path of a `.jinja` file.

    Raises:
        UserError: it is neither a known name nor a readable file.
    """
    path = Path(name_or_path)
    if path.suffix != ".jinja":
        path = FOLDER / f"{name_or_path}.jinja"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in FOLDER.glob("[!_]*.jinja")))
        raise UserError(f"There is no chat template {name_or_path!r}. Known by name: {known}; or give a .jinja file.")
    with explain_errors(f"The chat template {path} is not text"):
        return path.read_text(encoding="utf-8").rstrip("\n")


def _render(template: str, content: str | list[dict], special_tokens: dict[str, str]) -> str:
    """Renders one user message; returns the error if the template raises one."""
    return render_or_describe(template, [{"role": "user", "content": content}], **special_tokens)


def _takes_lists(template: str, special_tokens: dict[str, str]) -> bool:
    """Whether the template renders a list's image and, unless it leaves out the text of users, its text."""
    rendered = _render(template, [{"type": "image"}, {"type": "text", "text": PROBE}], special_tokens)
    is_left_out = _render(template, PROBE, special_tokens) == _render(template, "", special_tokens)
    return rendered.count(IMAGE_TOKEN) == 1 and (rendered.count(PROBE) == 1 or is_left_out)


def adapt_chat_template(template: str, **special_tokens: str) -> str:
    """
    Adapts a chat template to messages whose content is a list of images and text. The templates of most language
    models take only strings; they get a preamble that converts such a list to a string: `<image>` and a newline for
    each image, then the text. Strings are rendered as before.

    Args:
        template (`str`):
            Jinja template of a conversation; returned unchanged if it renders images as `<image>`.
        special_tokens:
            The tokenizer's special tokens, such as `bos_token="<s>"`, for templates that write them.

    Raises:
        UserError: the adapted template still loses the image or the text of a message, or the template does not end
            (see [`check_rendering`]).
    """
    check_once(template, tuple(special_tokens.items()))
    if _takes_lists(template, special_tokens):
        return template
    adapted = (FOLDER / STRING_CONTENT).read_text(encoding="utf-8") + template
    if _takes_lists(adapted, special_tokens):
        return adapted
    rendered = _render(adapted, f"{IMAGE_TOKEN}\n{PROBE}", special_tokens)
    raise UserError(
        f"The chat template loses the content of a message: it renders an image and {PROBE!r} as {rendered!r}. Choose "
        "another one with chat_template, such as vicuna_v1."
    )
