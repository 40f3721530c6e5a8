"""One question about one image."""

from ..files.user_error import explain_errors
from .checkpoint import checkpoint_folder


def answer(folder: str, image: str, question: str, max_new_tokens: int = 256) -> str:
    """
    Answers greedily.

    Args:
        folder (`str`):
            A folder on this machine or a name on the Hub.
        image (`str`):
            Path or address of the image; a photograph is turned upright.
        question (`str`):
            What to ask about it.
        max_new_tokens (`int`, *optional*, defaults to 256):
            Longest answer.

    Raises:
        ValueError: `folder` is no checkpoint, or `image` is no image or not to be had.
    """
    path = checkpoint_folder(folder)

    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from .picture import open_picture

    picture = open_picture(image)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    model = AutoModelForImageTextToText.from_pretrained(path, dtype="auto", trust_remote_code=True).to(device).eval()
    processor = AutoProcessor.from_pretrained(path, trust_remote_code=True)
    content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
    with explain_errors(types=ValueError):  # of the checkpoint's own processor
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(device, model.dtype)
    # transformers declares its models too narrowly to be bound to its own generate.
    tokens = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)  # pyright: ignore[reportAttributeAccessIssue]
    return processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
