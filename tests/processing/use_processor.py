"""
Uses the processor of a published folder in a process that cannot import the package; run by `test_both_versions.py`.

    python use_processor.py FOLDER OUTPUT

Saves it again under OUTPUT. Prints its findings as JSON and checks nothing.
"""

import json
import sys

import numpy as np
import torch
import transformers
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer


def make_images():
    """Images that versions of transformers read differently, and one of every kind of pixels."""
    generator = np.random.default_rng(0)
    sizes = [(3, 3), (1, 3), (3, 1), (1, 1), (2, 3), (4, 4), (30, 20), (300, 2)]
    arrays = [generator.integers(0, 256, (height, width, 3), dtype=np.uint8) for width, height in sizes]
    images = {f"{width} x {height}": Image.fromarray(array) for array, (width, height) in zip(arrays, sizes)}
    gray = generator.integers(0, 256, (7, 9), dtype=np.uint8)
    images |= {
        "I;16": Image.fromarray(gray.astype(np.uint16) * 257),
        "I": Image.fromarray(gray.astype(np.int32)),
        "F": Image.fromarray((gray / 255).astype(np.float32)),
        "16 bits": gray.astype(np.uint16) * 257,
        "opacity": np.dstack([gray, gray]),
        "tensor": torch.from_numpy(gray),
    }
    return images


def make_conversation(num_turns):
    user = {
        "role": "user",
        "content": [{"type": "image", "image": make_images()["I"]}, {"type": "text", "text": "yes ?"}],
    }
    answer = {"role": "assistant", "content": [{"type": "text", "text": "a red circle"}]}
    return [user, answer, {"role": "user", "content": "and in the image ?"}, answer, user, answer][: 2 * num_turns]


def describe(processor, image_processor, tokenizer):
    """Returns what the three parts of a folder make of images and conversations."""
    report = {
        "images": {},
        "image processor": {},
        "padding": [tokenizer.padding_side, processor.tokenizer.padding_side],
    }
    for name, image in make_images().items():
        report["images"][name] = processor(images=image, text="<image>", return_tensors="np")["pixel_values"].tolist()
        report["image processor"][name] = image_processor(image, return_tensors="np")["pixel_values"].tolist()
    inputs = processor.apply_chat_template(
        [make_conversation(3), make_conversation(1)],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        padding=True,
        return_assistant_tokens_mask=True,
        return_mm_token_type_ids=True,
    )
    names = ("input_ids", "attention_mask", "assistant_masks", "mm_token_type_ids")
    report["inputs"] = {name: inputs[name].tolist() for name in names}
    lists = processor.apply_chat_template(
        make_conversation(2), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    report["masked"] = tokenizer.decode([t for t, m in zip(lists["input_ids"][0], lists["assistant_masks"][0]) if m])
    return report


def load(folder):
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    image_processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
    return processor, image_processor, AutoTokenizer.from_pretrained(folder)


if __name__ == "__main__":
    sys.modules["hawaii"] = None  # makes importing the package fail even if it is installed
    torch.set_num_threads(1)
    parts = load(sys.argv[1])
    parts[0].save_pretrained(sys.argv[2])
    classes = [type(part).__name__ for part in (*parts[:2], parts[0].image_processor)]
    reports = [describe(*parts), describe(*load(sys.argv[2]))]
    print(json.dumps({"version": transformers.__version__, "classes": classes, "reports": reports}))
