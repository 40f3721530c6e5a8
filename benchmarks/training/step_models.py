"""The students, teachers and batch of `training_step.py`."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, ConvNextConfig, ConvNextModel, Dinov2Config, Dinov2Model

from hawaii import HawaiiConfig, HawaiiForConditionalGeneration
from hawaii.benchmarks.measuring.sizes import CLIP_LARGE, LLAMA_1B
from hawaii.training.recipes.objectives import OBJECTIVES, StudentWithObjective
from hawaii.training.teachers.config import TeacherConfig
from hawaii.training.teachers.loading import load_teacher
from hawaii.training.teachers.teacher import Teacher


CLIP_S = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4, "num_hidden_layers": 7}
CLIP_XS = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
# The student's encoder, which is the first teacher, too; the language model; and the teachers ConvNeXt and DINOv2. It
# stands for EVA-02, which needs timm. The sizes are those of large encoders, with images of 320 and 448 pixels for
# the teachers; small ones with about the same relations; and tiny ones for the tests.
SIZES = {
    "1b": (
        CLIP_LARGE,
        LLAMA_1B,
        {"depths": [3, 3, 27, 3], "hidden_sizes": [192, 384, 768, 1536], "image_size": 320},
        {"hidden_size": 1024, "num_attention_heads": 16, "num_hidden_layers": 24, "image_size": 448, "patch_size": 14},
    ),
    "small": (
        {**CLIP_S, "image_size": 112, "patch_size": 8},
        {"hidden_size": 768, "intermediate_size": 2048, "num_attention_heads": 12, "num_key_value_heads": 12}
        | {"num_hidden_layers": 8, "vocab_size": 4000, "max_position_embeddings": 1024},
        {"depths": [2, 2, 6, 2], "hidden_sizes": [64, 128, 256, 512], "image_size": 128},
        {"hidden_size": 256, "num_attention_heads": 4, "num_hidden_layers": 7, "image_size": 144, "patch_size": 8},
    ),
    "tiny": (
        {**CLIP_XS, "image_size": 16, "patch_size": 4},
        {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2}
        | {"num_hidden_layers": 2, "vocab_size": 64, "max_position_embeddings": 128},
        {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16], "image_size": 64},
        {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "image_size": 16, "patch_size": 4},
    ),
}
TEXT, LABELS = 64, 32  # tokens of a sample without those of its image, and those that are labels
PROMPT = 24  # tokens of the instruction, for the importance of the teachers' tokens


def make_teachers(size: str, device: torch.device) -> list[Teacher]:
    """Three teachers with random weights, through the files and the code that training loads."""
    clip, _, convnext, dino = SIZES[size]
    models = {
        "clip": (CLIPVisionModel(CLIPVisionConfig(**clip)), clip["image_size"]),
        "convnext": (ConvNextModel(ConvNextConfig(**convnext)), convnext["image_size"]),
        "dinov2": (Dinov2Model(Dinov2Config(**dino)), dino["image_size"]),
    }
    images = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "resample": "bicubic"}
    dtype = "bfloat16" if device.type == "cuda" else "float32"
    teachers = []
    with tempfile.TemporaryDirectory() as folder:
        for name, (model, side) in models.items():
            model.save_pretrained(Path(folder, name))
            layer = -2 if name == "clip" else None
            config = TeacherConfig(str(Path(folder, name)), name, side, layer=layer, dtype=dtype, **images)
            teachers.append(load_teacher(config, device))
    return teachers


def make_modules(size: str, teachers: list[Teacher], device: torch.device) -> dict[str, StudentWithObjective]:
    """The students of HAWAII and of LLaVA. LLaVA's has no adapters; HAWAII's are new and add nothing yet."""
    vision, text, _, _ = SIZES[size]
    vision = {**vision, "num_hidden_layers": vision["num_hidden_layers"] - 1}  # features of the last layer but one
    grids: Any = {teacher.name: teacher.grid for teacher in teachers}
    modules = {}
    for name in ("hawaii", "llava"):
        kind = OBJECTIVES[name]
        config = HawaiiConfig(
            vision_config={**vision, **kind.vision_fields(len(teachers))},
            text_config={"model_type": "llama", **text},
            image_token_index=text["vocab_size"] - 1,
        )
        student = HawaiiForConditionalGeneration(config)
        modules[name] = StudentWithObjective(student, kind(kind.options_class(), student, grids)).to(device).train()
    shared = modules["llava"].student.state_dict()
    missing = modules["hawaii"].student.load_state_dict(shared, strict=False).missing_keys
    assert all("adapter" in name or "router" in name for name in missing), missing
    return modules


def make_batch(module: StudentWithObjective, batch_size: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Samples of one image, a question and an answer."""
    student: Any = module.student
    vision, token = student.config.vision_config, student.config.image_token_id
    input_ids = torch.randint(0, token, (batch_size, vision.num_patches + TEXT))
    input_ids[:, : vision.num_patches] = token
    labels = torch.full_like(input_ids, -100)
    labels[:, -LABELS:] = input_ids[:, -LABELS:]
    prompt = input_ids[:, -LABELS - PROMPT : -LABELS]
    batch = {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "labels": labels,
        "label_index": (labels.flatten() != -100).nonzero().squeeze(-1),
        "num_label_tokens": torch.tensor(batch_size * LABELS),
        "prompt_ids": prompt,
        "prompt_mask": torch.ones_like(prompt, dtype=torch.bool),
        "image_index": torch.arange(batch_size),
        "num_squares": torch.tensor(batch_size),
        "pixel_values": torch.randn(batch_size, 3, vision.image_size, vision.image_size),
    }
    return {name: value.to(device) for name, value in batch.items()}
