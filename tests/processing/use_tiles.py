"""
Uses a published folder with tiles in a process that cannot import the package; run by
`test_tiles_in_both_versions.py`.

    python use_tiles.py FOLDER REFERENCE OUTPUT

REFERENCE has the inputs and logits of the publisher's process. Saves model and processor again under OUTPUT. Prints
its findings as JSON and checks nothing.
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaNextProcessor


try:
    from transformers import LlavaNextImageProcessorPil
except ImportError:  # transformers 4.57, where the one that needs no torchvision has the other's name
    from transformers import LlavaNextImageProcessor as LlavaNextImageProcessorPil


def make_inputs(processor):
    """The inputs of two prompts with images of different grids, and one without."""
    picture = Image.linear_gradient("L").convert("RGB")
    images = [picture.resize(size) for size in ((50, 20), (12, 47), (31, 30), (1, 1))]
    text = ["a <image> red <image>", "<image> no <image> ?", "is there a square"]
    return images, text, processor(images=images, text=text, padding=True, return_tensors="pt")


@torch.no_grad()
def logits_of(model, inputs):
    position_ids = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    return model.eval()(**inputs, position_ids=position_ids).logits[inputs["attention_mask"].bool()]


def squares_of(pixel_values, counts):
    """The squares of all images of LLaVA-NeXT's processor, without those that pad them."""
    return torch.cat([squares[:count] for squares, count in zip(pixel_values, counts)])


def difference(one, other):
    return float((one.float() - other.float()).abs().max()) if one.shape == other.shape else float("inf")


def error_of_truncation(processor, image):
    """What is raised where truncation would leave out some of an image's tokens."""
    try:
        processor(images=[image], text=["<image> a"], truncation=True, max_length=9)
    except ValueError as error:
        return str(error)
    return None


def describe(folder, reference):
    """Returns the differences from the publisher's inputs and logits, and from LLaVA-NeXT's inputs of this version."""
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
    images, text, inputs = make_inputs(processor)
    report = {name: difference(inputs[name], reference[name]) for name in inputs}
    report["logits"] = difference(logits_of(model, inputs), reference["logits"])
    side = {"height": 16, "width": 16}
    llava_next = LlavaNextProcessor(
        image_processor=LlavaNextImageProcessorPil(
            size=side, crop_size=side, image_grid_pinpoints=model.config.image_grid_pinpoints
        ),
        tokenizer=processor.tokenizer,
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    theirs = llava_next(images=images, text=text, padding=True, return_tensors="pt")
    squares = squares_of(theirs["pixel_values"], reference["num_tiles"].tolist())
    report["LLaVA-NeXT's pixels"] = difference(squares, reference["pixel_values"])
    report["LLaVA-NeXT's tokens"] = difference(theirs["input_ids"], reference["input_ids"])
    report["LLaVA-NeXT's sizes"] = difference(theirs["image_sizes"], reference["image_sizes"])
    report["truncation"] = error_of_truncation(processor, images[0])
    return report, processor, model


def use_tiles(folder, reference_file, output):
    reference = load_file(reference_file)
    published, processor, model = describe(folder, reference)
    processor.save_pretrained(output)
    model.save_pretrained(output)
    again, _, _ = describe(output, reference)
    return {"version": transformers.__version__, "published": published, "saved again": again}


if __name__ == "__main__":
    sys.modules["hawaii"] = None  # makes importing the package fail even if it is installed
    torch.set_num_threads(1)
    print(json.dumps(use_tiles(*map(Path, sys.argv[1:]))))
