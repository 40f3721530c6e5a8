"""`hawaii chat`: answers one question, or opens a conversation."""

import sys
from collections.abc import Sequence

from ..files.escape import show_controls
from ..files.user_error import UserError, explain_errors
from .checkpoint import checkpoint_folder


def chat(
    folder: str,
    image: Sequence[str] = (),
    question: str | None = None,
    max_new_tokens: int = 256,
    trust_remote_code: bool = False,
) -> str | None:
    """
    Answers a question with greedy decoding; without one, opens a conversation on the terminal, or about the lines of a
    pipe, until its end.

    Args:
        folder (`str`):
            A local folder or a repository on the Hub.
        image (`Sequence[str]`, *optional*):
            Paths or URLs of images for the first question. Photographs are rotated according to their EXIF
            orientation.
        question (`str`, *optional*):
            The only question.
        max_new_tokens (`int`, *optional*, defaults to 256):
            Maximum length of an answer.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run the code contained in a checkpoint that is not a HAWAII.

    Returns:
        `str`: The answer to `question`, with visible control characters; `None` after a conversation.

    Raises:
        UserError: `folder` is not a checkpoint, an image could not be opened, the question cannot be answered, or
            there is neither a question nor standard input.
    """
    if max_new_tokens < 1:
        raise UserError(f"--max_new_tokens is {max_new_tokens}, but must be at least 1.")
    if question is None and sys.stdin is None:
        raise UserError("Standard input is closed, so there can be no conversation; give a --question.")
    path = checkpoint_folder(folder, trust_remote_code=trust_remote_code)

    import torch

    from .conversation import Conversation
    from .lmms.loading import load_checkpoint
    from .picture import open_picture
    from .terminal import talk

    images = [open_picture(name) for name in image]
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    with explain_errors(f"{folder} could not be loaded"):
        model, processor = load_checkpoint(str(path), trust_remote_code, dtype="auto")
    conversation = Conversation(model.to(device).eval(), processor, folder, max_new_tokens)
    conversation.images = images
    if question is None:
        return talk(conversation)
    return show_controls("".join(conversation.ask(question)).strip())
