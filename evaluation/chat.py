"""One question about one image."""

from pathlib import Path

from .checkpoint import checkpoint_folder


def answer(folder, image, question, max_new_tokens=256):
    """
    Args:
        folder (`str`):
            A folder on this machine or a name on the Hub.
        image (`str`):
            Path or address of the image; a photograph is turned upright.
        question (`str`):
            What to ask about it.
        max_new_tokens (`int`, *optional*, defaults to 256):
            Longest answer.

    Returns:
        `str`: the model's greedy answer.
    """
    folder = checkpoint_folder(folder)
    if not str(image).startswith(("http://", "https://")) and not Path(image).is_file():
        raise ValueError(f"There is no image {image}; --image takes the path of a picture.")

    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from transformers.image_utils import load_image

    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto", trust_remote_code=True).to(device).eval()
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = processor(images=[load_image(str(image))], text=[text], return_tensors="pt").to(device, model.dtype)
    # transformers declares its models too narrowly to be bound to its own generate.
    tokens = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)  # pyright: ignore[reportAttributeAccessIssue]
    return processor.tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def chat(folder, image, question, max_new_tokens=256):
    """Prints the answer to one question about one image; see [`answer`]."""
    print(answer(folder, image, question, max_new_tokens))
