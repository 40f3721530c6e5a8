"""Recipes of encoders that learn without a language model, and a run of one."""

from pathlib import Path

from transformers import CLIPImageProcessorPil

from hawaii import HawaiiVisionConfig, HawaiiVisionModel
from hawaii.hub_cards.export import export
from hawaii.processing.encoder_processor import EncoderProcessor

from .models import FACTS, VISION, make_model
from .training import SHORT_RUN, make_record, save_data, save_recipe


def make_encoder_processor(image_aspect_ratio: str = "pad", **kwargs) -> EncoderProcessor:
    """For the tiny encoder; `kwargs` are fields of the image processor that it is made of."""
    return EncoderProcessor(CLIPImageProcessorPil(**kwargs), HawaiiVisionConfig(**VISION), image_aspect_ratio)


def write_encoder_recipe(folder: Path, teachers: dict[str, Path], **changes) -> Path:
    """
    A recipe of two stages over tiny images, all under `folder`; `changes` replace its shared keys. There is dropout,
    so that a resume needs the random states, and stages end in the middle of an epoch.
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
    """An encoder with random values as training publishes it, and what was saved; `vision` are other fields."""
    encoder = make_model(vision={"num_teacher_adapters": 2, **vision}).model.vision_tower
    stage = folder.with_name(f"{folder.name}_stage")
    encoder.save_pretrained(stage)
    make_encoder_processor(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]).save_pretrained(stage)
    facts = {**FACTS, "stages": {"distill": {**FACTS["stages"]["finetune"], "teachers": {"vit": {}, "convnext": {}}}}}
    export(stage, folder, facts)
    return encoder
