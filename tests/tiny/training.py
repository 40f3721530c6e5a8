"""Tiny teachers, data and recipes: all that a training run reads, made from scratch in a folder."""

import dataclasses
import inspect
import json
from pathlib import Path

import torch
import yaml
from PIL import Image
from transformers import CLIPImageProcessor, ConvNextConfig, ConvNextModel, TrainingArguments, ViTConfig, ViTModel

from hawaii import HawaiiProcessor
from hawaii.files.manifest import write_manifest
from hawaii.processing.chat_templates import load_chat_template
from hawaii.training.baselines.class_token_teacher import ClassTokenGrid
from hawaii.training.checkpoints import save_objective
from hawaii.training.data.conversation_dataset import Collator, ConversationDataset
from hawaii.training.finished_stage import ObjectiveSettings, save_settings
from hawaii.training.objectives.objective import ObjectiveOptions
from hawaii.training.recipes.arguments import TRAINABLE_PARTS, HawaiiTrainingArguments
from hawaii.training.recipes.objectives import OBJECTIVES, StudentWithObjective
from hawaii.training.sources.readers import read_records
from hawaii.training.sources.record import Message, Record
from hawaii.training.teachers.config import TeacherConfig
from hawaii.training.trainer import HawaiiTrainer

from .models import VISION, fill, make_model, make_processor, make_tokenizer


# With the student's 4 x 4 tokens: one that has the same grid, one that must be unshuffled by two.
TEACHER_GRIDS = {"vit": (4, 4, 16), "convnext": (8, 8, 16)}
TEACHER_IMAGE_SIZES = {"vit": 16, "convnext": 32}

TEXT = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


def save_image_processor(folder: Path, image_size: int, **kwargs) -> None:
    size = {"height": image_size, "width": image_size}
    CLIPImageProcessor(size=size, crop_size=size, **kwargs).save_pretrained(folder)


def make_teacher_models() -> dict[str, torch.nn.Module]:
    """A vision transformer with a class token, and a convolutional network that gives a map."""
    vit = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=4
    )
    convnext = ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, patch_size=2, image_size=32)
    return {"vit": fill(ViTModel(vit, add_pooling_layer=False)), "convnext": fill(ConvNextModel(convnext))}


def save_teachers(folder: Path) -> dict[str, Path]:
    """Folders that [`load_teacher`] reads, by the teachers' names."""
    torch.manual_seed(0)
    for name, model in make_teacher_models().items():
        model.save_pretrained(folder / name)
        save_image_processor(folder / name, TEACHER_IMAGE_SIZES[name])
    return {name: folder / name for name in TEACHER_GRIDS}


def make_image(seed: int, width: int = 16, height: int = 16) -> Image.Image:
    """An image of noise, so that no two are alike."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (height, width, 3), generator=generator, dtype=torch.uint8)
    return Image.frombytes("RGB", (width, height), bytes(pixels.flatten().tolist()))


def make_record(number: int, questions: int = 1, image: bool = True) -> dict:
    """A conversation of LLaVA's form, whose length goes with the number of questions."""
    turns = []
    for turn in range(questions):
        question = ["what color is the shape ?", "is there a circle in the image ?", "what is a square ?"][turn % 3]
        answer = ["red", "yes , there is", "a shape"][(number + turn) % 3]
        turns += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    record = {"id": str(number), "conversations": turns}
    if image:
        turns[0]["value"] = f"<image>\n{turns[0]['value']}"
        record["image"] = f"{number}.png"
    return record


def make_messages(*texts: str) -> list[Message]:
    """The messages of a user and an assistant in turn; `<image>` stands for an image of the user."""
    return [
        Message(("user", "assistant")[number % 2], text.replace("<image>", "").strip(), text.count("<image>"))
        for number, text in enumerate(texts)
    ]


def read_data(folder: Path, records: list[dict]) -> list[Record]:
    """Writes records in LLaVA's form to `data.json` and reads them."""
    (folder / "data.json").write_text(json.dumps(records), encoding="utf-8")
    return list(read_records(str(folder / "data.json")))


# Samples of which no two are alike: an image with one question, text alone, an image with two questions.
RAGGED = [make_record(0), make_record(1, image=False), make_record(2, questions=2)]


def save_data(folder: Path, records: list[dict]) -> Path:
    """Writes `data.json` and, under `images`, the images that the records name."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for record in records:
        if "image" in record:
            number = int(record["id"])
            make_image(number, 16, 16 + number % 3).save(folder / "images" / record["image"])
    (folder / "data.json").write_text(json.dumps(records), encoding="utf-8")
    return folder


def make_dataset(folder: Path, processor: HawaiiProcessor, **kwargs) -> ConversationDataset:
    kwargs = {"teacher_image_size": 32, **kwargs}
    return ConversationDataset(str(folder / "data.json"), str(folder / "images"), processor, **kwargs)


def make_batch(folder: Path, records: list[dict], processor: HawaiiProcessor) -> dict[str, torch.Tensor]:
    """The records as the trainer hands them to the objective, when they are all of a step."""
    dataset = make_dataset(save_data(folder, records), processor)
    return count(Collator(processor, 32)([dataset[index] for index in range(len(dataset))]))


def count(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Adds the counts of a step that is this batch alone."""
    num_label_tokens, num_squares = (batch["labels"] != -100).sum(), (batch["image_index"] >= 0).sum()
    label_index = (batch["labels"].flatten() != -100).nonzero().squeeze(-1)
    return {**batch, "label_index": label_index, "num_label_tokens": num_label_tokens, "num_squares": num_squares}


def select(batch, samples):
    """The part of a batch that a collator would have made of these samples, padded as before."""
    names = ("input_ids", "attention_mask", "labels", "prompt_ids", "prompt_mask")
    part = {name: batch[name][samples] for name in names}
    images = [index for index, sample in enumerate(batch["image_index"].tolist()) if sample in samples]
    for name in ("pixel_values", "teacher_images"):
        part[name] = batch[name][images]
    part["image_index"] = torch.tensor([samples.index(batch["image_index"][image]) for image in images])
    return count(part)


def without_labels(batch):
    """The batch with nothing to say, so that only distillation and balance have a gradient."""
    batch = count({**batch, "labels": torch.full_like(batch["labels"], -100)})
    return {**batch, "num_label_tokens": torch.tensor(1)}


def make_arguments(output_dir="unused", **kwargs) -> HawaiiTrainingArguments:
    kwargs = {"use_cpu": True, "report_to": "none", **kwargs}
    return HawaiiTrainingArguments(output_dir=str(output_dir), **kwargs)


def make_options(objective="hawaii", **kwargs) -> ObjectiveOptions:
    """The options of an objective; as in a recipe, those of other objectives and `None` are left out."""
    options_class = OBJECTIVES[objective].options_class
    known = {field.name for field in dataclasses.fields(options_class)}
    return options_class(**{name: value for name, value in kwargs.items() if name in known and value is not None})


def make_module(vision: dict | None = None, text: dict | None = None, **kwargs) -> StudentWithObjective:
    """All that trains, with random values; arguments as for [`make_config`] and [`make_options`]."""
    objective, trainable = kwargs.pop("objective", "hawaii"), kwargs.pop("trainable", None)
    kind = OBJECTIVES[objective]
    module_options = make_options(objective, **kwargs)
    # The ranks of adapters are those of the tests, whatever is the objective's own.
    fields = {**kind.vision_fields(len(TEACHER_GRIDS)), "lora_rank": 4, "lora_alpha": 4, **(vision or {})}
    student = make_model(vision=fields, text=text)
    grids = dict(TEACHER_GRIDS)
    if objective == "move_kd":
        grids["vit"] = ClassTokenGrid(*grids["vit"])
    module = StudentWithObjective(student, kind(module_options, student, grids))
    module.objective.set_trainable(TRAINABLE_PARTS if trainable is None else trainable)
    return module


def build_trainer(
    folder: Path,
    module: StudentWithObjective,
    teachers: list,
    records: list[dict],
    chat_template: str = "vicuna_v1",
    callbacks=(),
    **kwargs,
) -> HawaiiTrainer:
    """A trainer of records that are saved in `folder`, with the run in `folder / "run"` and no progress bar."""
    processor = make_processor(chat_template=chat_template)
    return HawaiiTrainer(
        model=module,
        teachers=teachers,
        args=make_arguments(folder / "run", **{"disable_tqdm": True, **kwargs}),
        train_dataset=make_dataset(save_data(folder, records), processor),
        data_collator=Collator(processor, 32),
        processing_class=processor,
        callbacks=list(callbacks),
    )


def gradients(module, loss):
    """Of every trainable parameter, by name; zeros are zeros and what is missing is `None`."""
    module.zero_grad(set_to_none=True)
    loss.backward()
    return {name: parameter.grad for name, parameter in module.named_parameters() if parameter.requires_grad}


def reached(gradients, part):
    """Names of the parameters, among those whose name holds `part`, that have a gradient other than zero."""
    return {name for name, gradient in gradients.items() if part in name and gradient is not None and gradient.any()}


def save_tokenizer(folder: Path) -> Path:
    """A tokenizer that brings its own chat template, as a language model's does."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = load_chat_template("vicuna_v1")
    tokenizer.save_pretrained(folder)
    return folder


# transformers 5.23 renamed it; what is installed knows the old name, or both.
CHECKPOINTING = [
    name
    for name in ("activation_checkpointing", "gradient_checkpointing")
    if name in inspect.signature(TrainingArguments).parameters
]

# A stage of a few steps, each logged and every second saved.
SHORT_RUN = {
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-3,
    "max_steps": 6,
    "logging_steps": 1,
    "save_strategy": "steps",
    "save_steps": 2,
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
}


def save_recipe(folder: Path, recipe: dict) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return path


def write_recipe(folder: Path, teachers: dict[str, Path], **changes) -> Path:
    """A recipe of two stages over a tiny data set, all under `folder`; `changes` replace its shared keys. There is
    dropout, so that a resume needs the random states, and stages end in the middle of an epoch."""
    save_data(
        folder,
        [make_record(number, questions=1 + number % 3, image=number % 5 != 2) for number in (*range(12), 13, 14)],
    )
    recipe = {
        "output_dir": str(folder / "run"),
        "tokenizer": str(save_tokenizer(folder / "tokenizer")),
        "teachers": [str(path) for path in teachers.values()],
        "vision_config": VISION,
        "text_config": {**TEXT, "attention_dropout": 0.1},
        "data_path": str(folder / "data.json"),
        "image_folder": str(folder / "images"),
        **SHORT_RUN,
        "stages": {
            "pretrain": {"chat_template": "plain", "trainable": ["adapters", "routers", "projector"]},
            "finetune": {"gradient_accumulation_steps": 2},
        },
        **changes,
    }
    return save_recipe(folder, recipe)


def save_stage(folder: Path, teachers: dict[str, Path], chat_template: str = "vicuna_v1", **kwargs):
    """
    Saves a finished stage with random weights in the format of the trainer and returns its module. The weights are the
    same for every call. Arguments as for [`make_module`].
    """
    torch.manual_seed(0)
    module = make_module(**kwargs)
    module.student.save_pretrained(folder)
    make_processor(chat_template=chat_template).save_pretrained(folder)
    save_objective(module.objective, folder)
    configs = [TeacherConfig(str(path)) for path in teachers.values()]
    save_settings(ObjectiveSettings(kwargs.get("objective", "hawaii"), module.objective.options, configs), folder)
    write_manifest(folder, {})
    return module
