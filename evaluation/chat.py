"""Answers one question about one image."""

from ..files.user_error import explain_errors
from .checkpoint import checkpoint_folder


def answer(folder: str, image: str, question: str, max_new_tokens: int = 256, trust_remote_code: bool = False) -> str:
    """
    Answers a question with greedy decoding.

    Args:
        folder (`str`):
            A local folder or a repository on the Hub.
        image (`str`):
            Path or URL of the image. A photograph is rotated according to its EXIF orientation.
        question (`str`):
            Question about the image.
        max_new_tokens (`int`, *optional*, defaults to 256):
            Maximum length of the answer.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run the code contained in a checkpoint that is not a HAWAII.

    Raises:
        UserError: `folder` is not a checkpoint or `image` could not be opened.
    """
    path = checkpoint_folder(folder, trust_remote_code=trust_remote_code)

    import torch

    from ..hub_cards.space.hawaii_space.conversation import leave_out_image_words
    from ..processing.chat_templates.limits import check_rendering
    from .lmms.loading import load_checkpoint
    from .picture import open_picture

    picture = open_picture(image)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    with explain_errors(f"{folder} could not be loaded"):
        model, processor = load_checkpoint(str(path), trust_remote_code, dtype="auto")
    model = model.to(device).eval()
    content = [
        {"type": "image", "image": picture},
        {"type": "text", "text": leave_out_image_words(processor, question)},
    ]
    messages = [{"role": "user", "content": content}]
    subject = f"The chat template of {folder}"
    if isinstance(processor.chat_template, str):
        shown = [[{"role": "user", "content": [{"type": "image"}, content[1]]}]]
        check_rendering(processor.chat_template, processor.tokenizer.special_tokens_map, shown, subject)
    with explain_errors(f"{subject} fails"):  # a template is a program and may raise anything
        processor.apply_chat_template(messages, tokenize=False)
    with explain_errors(types=ValueError):  # raised by the processor of the checkpoint
        inputs = processor.apply_chat_template(
            messages,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(device, model.dtype)
    tokens = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
    return processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
