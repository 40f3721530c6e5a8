"""The chat templates by name, `plain` (stage 1) and `vicuna_v1` (stage 2); a language model's own, made to fit."""

from pathlib import Path

from transformers.utils.chat_template_utils import render_jinja_template

from ...files.user_error import UserError
from ..processing_hawaii import IMAGE_TOKEN


FOLDER = Path(__file__).parent
# In front of a template whose messages hold strings; those of a HAWAII hold lists of images and text.
STRING_CONTENT = "_string_content.jinja"
PROBE = "which of them is it?"


def load_chat_template(name_or_path: str) -> str:
    """
    Reads a chat template.

    Args:
        name_or_path (`str`):
            `"plain"`, `"vicuna_v1"`, or the path of a `.jinja` file.

    Raises:
        ValueError: neither a known name nor a file.
    """
    path = Path(name_or_path)
    if path.suffix != ".jinja":
        path = FOLDER / f"{name_or_path}.jinja"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in FOLDER.glob("[!_]*.jinja")))
        raise UserError(f"There is no chat template {name_or_path!r}. Known by name: {known}; or give a .jinja file.")
    return path.read_text(encoding="utf-8").rstrip("\n")


def _render(template: str, content: str | list[dict], special_tokens: dict[str, str]) -> str:
    """What a user who says this is made of; where the template fails, how it fails."""
    try:
        messages = [{"role": "user", "content": content}]
        return render_jinja_template([messages], chat_template=template, **special_tokens)[0][0]
    except Exception as error:  # templates are programs and fail as those do
        return f"{type(error).__name__}: {error}"


def _takes_lists(template: str, special_tokens: dict[str, str]) -> bool:
    """Whether a list shows its image and, unless the template leaves out what the user says, its text."""
    rendered = _render(template, [{"type": "image"}, {"type": "text", "text": PROBE}], special_tokens)
    is_left_out = _render(template, PROBE, special_tokens) == _render(template, "", special_tokens)
    return rendered.count(IMAGE_TOKEN) == 1 and (rendered.count(PROBE) == 1 or is_left_out)


def adapt_chat_template(template: str, **special_tokens: str) -> str:
    """
    Makes a chat template take messages whose content is a list of images and text. Most language models' take strings
    alone; they get a preamble that makes one string of such a list, `<image>` and a newline for each image and then
    the text, and render strings as before.

    Args:
        template (`str`):
            Jinja template of a conversation; returned as it is if it shows images as `<image>`.
        special_tokens:
            The tokenizer's, such as `bos_token="<s>"`, for templates that write them.

    Raises:
        ValueError: the template loses the image or the text of a message even so.
    """
    if _takes_lists(template, special_tokens):
        return template
    adapted = (FOLDER / STRING_CONTENT).read_text(encoding="utf-8") + template
    if _takes_lists(adapted, special_tokens):
        return adapted
    rendered = _render(adapted, f"{IMAGE_TOKEN}\n{PROBE}", special_tokens)
    raise UserError(
        f"The chat template does not show what a message holds: of an image and {PROBE!r} it makes {rendered!r}. Name "
        "another one with chat_template, such as vicuna_v1."
    )
