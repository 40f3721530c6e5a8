"""Recipes and published folders of encoders that are trained without a language model."""

from pathlib import Path

from transformers import CLIPImageProcessorPil

from hawaii import HawaiiVisionConfig, HawaiiVisionModel
from hawaii.files.manifest import write_manifest
from hawaii.hub_cards.export import export
from hawaii.processing.encoder_processor import EncoderProcessor

from .models import FACTS, VISION, make_model
from .training import SHORT_RUN, make_record, save_data, save_recipe


def make_encoder_processor(image_aspect_ratio: str = "pad", **kwargs) -> EncoderProcessor:
    """Processor of the tiny encoder; `kwargs` are fields of the image processor that it is made from."""
    return EncoderProcessor(CLIPImageProcessorPil(**kwargs), HawaiiVisionConfig(**VISION), image_aspect_ratio)


def write_encoder_recipe(folder: Path, teachers: dict[str, Path], **changes) -> Path:
    """
    Writes a recipe of two stages and its tiny images to `folder`; `changes` replace its shared keys. It has dropout,
    so that a resumed run needs the random states, and stages end in the middle of an epoch.
    """
    numbers = (*range(12), 13, 14)
    save_data(folder, [make_record(number, image=number % 5 != 2) for number in numbers])
    recipe = {
        "output_dir": str(folder / "run"),
        "teachers": [str(path) for path in teachers.values()],
        "vision_config": {**VISION, "attention_dropout": 0.1},
        "data_path": str(folder / "data.json"),
        "image_folder": str(folder / "images"),
        **SHORT_RUN,
        "max_steps": 4,
        "stages": {"first": {"image_aspect_ratio": "crop"}, "second": {"gradient_accumulation_steps": 2}},
        **changes,
    }
    return save_recipe(folder, recipe)


def save_encoder_folder(folder: Path, **vision) -> HawaiiVisionModel:
    """Publishes an encoder with random values and returns it; `vision` are fields of its configuration."""
    encoder = make_model(vision={"num_teacher_adapters": 2, **vision}).model.vision_tower
    stage = folder.with_name(f"{folder.name}_stage")
    encoder.save_pretrained(stage)
    make_encoder_processor(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]).save_pretrained(stage)
    write_manifest(stage, {})
    facts = {**FACTS, "stages": {"distill": {**FACTS["stages"]["finetune"], "teachers": {"vit": {}, "convnext": {}}}}}
    export(stage, folder, facts)
    return encoder
