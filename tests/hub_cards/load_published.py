"""
Uses a published folder in a process that cannot import the package; run by `test_loading.py`.

    python load_published.py FOLDER VISION_FOLDER REFERENCE OUTPUT [OTHER]

REFERENCE contains inputs and the outputs of the publisher's process. Models are saved again under OUTPUT; OTHER is the
OUTPUT of another version. Prints its findings as JSON and checks nothing.
"""

import copy
import json
import sys
from pathlib import Path


# Makes importing the package fail even if it is installed.
sys.modules["hawaii"] = None

import torch  # noqa: E402
import transformers  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor  # noqa: E402


QUESTION = [{"type": "image"}, {"type": "text", "text": "what color is the shape ?"}]


def load(auto_class, folder):
    return auto_class.from_pretrained(folder, trust_remote_code=True)


@torch.no_grad()
def difference(model, reference):
    """Largest difference between the output of a complete model, a base model or an encoder and the reference."""
    model.eval()
    if hasattr(model, "lm_head"):
        inputs = {name: reference[name] for name in ("input_ids", "attention_mask", "pixel_values")}
        output, expected = model(**inputs).logits, reference["logits"]
    elif hasattr(model, "language_model"):
        output = model(input_ids=reference["input_ids"], pixel_values=reference["pixel_values"]).last_hidden_state
        expected = reference["last_hidden_state"]
    else:
        output = model(reference["pixel_values"], adapters=reference["adapters"]).last_hidden_state
        expected = reference["vision_features"]
    return float((output - expected).abs().max())


@torch.no_grad()
def second_turn(model, inputs):
    """
    Answers of a second turn with a second image: from the cache of the first turn, without it, and with another image.
    """
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    first = model.generate(**inputs, **options, return_dict_in_generate=True)
    tokens = torch.cat([first.sequences, inputs["input_ids"]], dim=1)
    images = torch.cat([inputs["pixel_values"], inputs["pixel_values"].flip(-1)])
    others = torch.cat([inputs["pixel_values"], -inputs["pixel_values"]])

    def scores(pixel_values, **kwargs):
        output = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            pixel_values=pixel_values,
            output_logits=True,
            return_dict_in_generate=True,
            **options,
            **kwargs,
        )
        return output.logits[0]

    expected = scores(images)
    cached = scores(images, past_key_values=first.past_key_values)
    return {
        "difference": float((cached - expected).abs().max()),
        "difference_of_another_image": float((scores(others) - expected).abs().max()),
    }


def load_everything(folder, vision_folder, reference_folder, output, other=None):
    report = {"version": transformers.__version__, "classes": {}, "differences": {}}
    reference = load_file(reference_folder / "reference.safetensors")
    image = Image.open(reference_folder / "image.png")

    report["classes"]["AutoConfig"] = type(load(AutoConfig, folder)).__name__
    auto_classes = {
        "AutoModelForImageTextToText": AutoModelForImageTextToText,
        "AutoModel": AutoModel,
        "AutoModelForVision2Seq": getattr(transformers, "AutoModelForVision2Seq", None),
        "AutoModelForMultimodalLM": getattr(transformers, "AutoModelForMultimodalLM", None),
    }
    models = {}
    for name, auto_class in auto_classes.items():
        if auto_class is not None:
            models[name] = load(auto_class, folder)
            report["classes"][name] = type(models[name]).__name__
            report["differences"][name] = difference(models[name], reference)
    model = models["AutoModelForImageTextToText"]

    vision_model = load(AutoModel, vision_folder)
    report["classes"]["vision AutoModel"] = type(vision_model).__name__
    report["differences"]["vision AutoModel"] = difference(vision_model, reference)

    processor = load(AutoProcessor, folder)
    report["classes"]["AutoProcessor"] = type(processor).__name__
    prompt = processor.apply_chat_template([{"role": "user", "content": QUESTION}], add_generation_prompt=True)
    inputs = processor(images=image, text=prompt, return_tensors="pt")
    for name in ("input_ids", "attention_mask", "pixel_values"):
        report["differences"][name] = float((inputs[name] - reference[name]).abs().max())

    length = inputs["input_ids"].shape[1]
    options = {
        "greedy": {},
        "beams": {"num_beams": 3},
        "static_cache": {"cache_implementation": "static"},
        "prompt_lookup": {"prompt_lookup_num_tokens": 2},
        "no_cache": {"use_cache": False},
        "assisted": {"assistant_model": copy.deepcopy(model)},
    }
    report["answers"] = {
        name: model.generate(**inputs, max_new_tokens=6, do_sample=False, **kwargs)[0, length:].tolist()
        for name, kwargs in options.items()
    }
    report["second_turn"] = second_turn(model, inputs)
    pipe = transformers.pipeline("image-text-to-text", model=str(folder), trust_remote_code=True, device="cpu")
    messages = [{"role": "user", "content": [{"type": "image", "image": image}, QUESTION[1]]}]
    generated = pipe(text=messages, max_new_tokens=6, do_sample=False, return_full_text=False)
    report["answers"]["pipeline"] = generated[0]["generated_text"]

    # Saves and loads again the complete model, the base model, the encoder, and the parts of the complete model.
    parts = {"part": model.model, "vision part": model.model.vision_tower}
    saved_models = {"complete": model, "base": models["AutoModel"], "vision": vision_model, **parts}
    for name, saved in saved_models.items():
        saved.save_pretrained(output / name)
        auto_class = AutoModelForImageTextToText if name == "complete" else AutoModel
        report["differences"][f"{name} saved again"] = difference(load(auto_class, output / name), reference)
    processor.save_pretrained(output / "complete")
    again = load(AutoProcessor, output / "complete")(images=image, text=prompt, return_tensors="pt")
    report["differences"]["processor saved again"] = max(
        float((again[name] - inputs[name]).abs().max()) for name in inputs
    )

    if other is not None:
        report["differences"]["complete saved by the other version"] = difference(
            load(AutoModelForImageTextToText, other / "complete"), reference
        )
        report["differences"]["vision saved by the other version"] = difference(
            load(AutoModel, other / "vision"), reference
        )
        theirs = load(AutoProcessor, other / "complete")(images=image, text=prompt, return_tensors="pt")
        report["differences"]["processor saved by the other version"] = max(
            float((theirs[name] - inputs[name]).abs().max()) for name in inputs
        )

    report["package_modules"] = [name for name, module in sys.modules.items() if name.startswith("hawaii") and module]
    return report


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(load_everything(*map(Path, sys.argv[1:]))))
