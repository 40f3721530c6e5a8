"""Words of a question that are image tokens: an image takes their place, or they are left out."""


def leave_out(image_token, text):
    """Returns `text` without `image_token`, also where what is left would be one again."""
    while image_token in text:
        text = text.replace(image_token, "")
    return text


def place_images(content, image_token):
    """
    Makes a message whose text has no image token: it would stand for an image.

    Args:
        content (`list[dict]`):
            Items of type `image` and `text`.
        image_token (`str`):
            The token of an image in a prompt, which a text of a task may contain.

    Returns:
        `list[dict]`: If the texts have as many tokens as there are images, each image is in the place of its token.
        Otherwise the tokens are words of a question, and left out.
    """
    images = [item for item in content if item["type"] == "image"]
    num_tokens = sum(item["text"].count(image_token) for item in content if item["type"] == "text")
    if num_tokens == len(images) and images:
        parts = []
        for item in content:
            first, *others = item["text"].split(image_token) if item["type"] == "text" else [""]
            parts.append({"type": "text", "text": first.removesuffix("\n") if others else first})
            for text in others:
                # A template puts its own line break between an image and a text.
                parts += [images.pop(0), {"type": "text", "text": text.removeprefix("\n")}]
        content = [item for item in parts if item.get("text") != ""]
    placed = []
    for item in content:
        if item["type"] == "text" and placed and placed[-1]["type"] == "text":
            joined = placed[-1]["text"] + item["text"]  # as a template joins them
            if image_token in joined:
                placed.pop()
                item = {**item, "text": joined}
        placed.append({**item, "text": leave_out(image_token, item["text"])} if item["type"] == "text" else item)
    return placed
