"""Words of a question that are image tokens: an image takes their place, or they are left out."""

from ...hub_cards.space.hawaii_space.conversation import leave_out_image_words


def place_images(content, processor):
    """
    Makes a message whose text has no image token: it would stand for an image.

    Args:
        content (`list[dict]`):
            Items of type `image` and `text`.
        processor (`ProcessorMixin`):
            Its `image_token` stands for an image in a prompt. A text of a task may contain it.

    Returns:
        `list[dict]`: If the texts have as many tokens as there are images, each image is in the place of its token.
        Otherwise the tokens are words of a question, and left out.
    """
    image_token = processor.image_token
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
        if item["type"] == "text":
            item = {**item, "text": leave_out_image_words(processor, item["text"])}
        placed.append(item)
    return placed
