"""
Compares published folders with the LLaVA-NeXTs of transformers that they were converted from, in a process that cannot
import the package; run by `test_convert_llava_next.py`.

    python compare_with_llava_next.py OUTPUT LLAVA STUDENT [LLAVA STUDENT ...]

Saves each LLaVA again, and logits, under OUTPUT. Prints its findings as JSON and checks nothing.
"""

import json
import sys
from pathlib import Path


# Makes importing the package fail even if it is installed.
sys.modules["hawaii"] = None

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaNextForConditionalGeneration,
)


# Widths and heights.
SIZES = {
    "wide": (90, 14),
    "very wide": (300, 2),
    "tall": (11, 70),
    "tiny": (8, 5),
    "one tile": (16, 16),
    "odd": (33, 31),
    "huge": (3100, 2300),
    "huge and tall": (700, 3300),
}
# The images of each prompt of a batch.
BATCHES = [
    [["wide"], ["tall", "tiny"]],
    [["odd", "huge", "one tile"], [], ["very wide"]],
    [["huge and tall"]],
    [["tiny"], ["tiny"], ["wide", "wide"]],
]
QUESTION = "what color is the shape ?"


def make_images():
    generator = np.random.default_rng(0)
    return {
        name: Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for name, (width, height) in SIZES.items()
    }


def make_conversation(names, images):
    pictures = [{"type": "image", "image": images[name]} for name in names]
    return [{"role": "user", "content": [*pictures, {"type": "text", "text": QUESTION}]}]


def largest_difference(found, expected, mask):
    return float((found - expected)[mask.bool()].abs().max())


@torch.no_grad()
def compare(llava_folder, student_folder, output):
    llava = LlavaNextForConditionalGeneration.from_pretrained(llava_folder, dtype=torch.float32).eval()
    student = AutoModelForImageTextToText.from_pretrained(student_folder, trust_remote_code=True).eval()
    original = AutoProcessor.from_pretrained(llava_folder)
    original.tokenizer.padding_side = "left"
    processor = AutoProcessor.from_pretrained(student_folder, trust_remote_code=True)
    images, logits = make_images(), {}
    report = {"classes": [type(part).__name__ for part in (student, processor)], "batches": []}
    for number, batch in enumerate(BATCHES):
        conversations = [make_conversation(names, images) for names in batch]
        prompts, own_prompts = (
            [each.apply_chat_template(conversation, add_generation_prompt=True) for conversation in conversations]
            for each in (original, processor)
        )
        pictures = [images[name] for names in batch for name in names]
        theirs, own = (
            each(images=pictures, text=prompts, padding=True, return_tensors="pt") for each in (original, processor)
        )
        expected = llava(**theirs).logits
        found = {"own inputs": student(**own).logits, "their inputs": student(**theirs).logits}
        others = {**theirs, "pixel_values": theirs["pixel_values"].clone()}
        others["pixel_values"][0, [1, 2]] = theirs["pixel_values"][0, [2, 1]]
        options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
        answers = [
            model.generate(**inputs, **options).tolist()
            for model, inputs in ((llava, theirs), (student, own), (student, theirs))
        ]
        report["batches"].append(
            {
                "prompts": [prompts, own_prompts],
                "dimensions": [own["pixel_values"].ndim, theirs["pixel_values"].ndim],
                "are equal": {
                    name: torch.equal(own[name], theirs[name])
                    for name in ("input_ids", "attention_mask", "image_sizes")
                },
                "difference": {
                    name: largest_difference(values, expected, own["attention_mask"]) for name, values in found.items()
                },
                "difference of swapped tiles": largest_difference(
                    student(**others).logits, expected, own["attention_mask"]
                ),
                "answers": answers,
            }
        )
        logits[f"student {number}"], logits[f"llava {number}"] = found["own inputs"], expected
        logits |= {f"{name} {number}": tensor.contiguous() for name, tensor in theirs.items()}
    output.mkdir(parents=True)
    save_file(logits, output / "logits.safetensors")
    llava.save_pretrained(output / "llava")
    return report


if __name__ == "__main__":
    torch.set_num_threads(1)
    output, *folders = map(Path, sys.argv[1:])
    reports = {
        llava.name: compare(llava, student, output / llava.name) for llava, student in zip(folders[::2], folders[1::2])
    }
    modules = [name for name, module in sys.modules.items() if name.startswith("hawaii") and module]
    print(json.dumps({"version": transformers.__version__, "package_modules": modules, "reports": reports}))
