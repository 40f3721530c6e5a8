"""
Compares a training step of HAWAII with one of LLaVA, by part and stage: with teachers that run in every step, and with
features that are read from a cache. Both train the same student, alternately, after a check that their text losses are
equal. A second comparison is that of one batch for all passes of the encoder with one batch for each pass. On CPUs,
seconds are those of this process; a step has no optimizer, whose seconds depend on the number of weights only.

    python benchmarks/training/training_step.py --size small

On a GPU, steps compute in bfloat16 and must not wait for the device; the share of its peak that a step reaches and the
memory are measured, too.
"""

import copy
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionConfig, CLIPVisionModel, ConvNextConfig, ConvNextModel, Dinov2Config, Dinov2Model

from hawaii import HawaiiConfig, HawaiiForConditionalGeneration
from hawaii.benchmarks.measuring.command import find_device, make_parser, print_comparisons, process_clock
from hawaii.benchmarks.measuring.comparison import Comparison, compare
from hawaii.training.counting.gpus import find_peak
from hawaii.training.counting.step import BatchShape
from hawaii.training.recipes.objectives import OBJECTIVES, StudentWithObjective
from hawaii.training.students.trainable import set_trainable
from hawaii.training.teachers.config import TeacherConfig
from hawaii.training.teachers.loading import load_teacher
from hawaii.training.teachers.teacher import Teacher


CLIP_L = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24}
CLIP_S = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4, "num_hidden_layers": 7}
CLIP_XS = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
# The student's encoder, which is the first teacher, too; the language model; and the teachers ConvNeXt and DINOv2. It
# stands for EVA-02, which needs timm. The sizes are the paper's with images of 320 and 448 pixels for the teachers, a
# small one with about the same relations, and a tiny one for the test of this file.
SIZES = {
    "7b": (
        {**CLIP_L, "image_size": 336, "patch_size": 14},
        {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "num_key_value_heads": 32}
        | {"num_hidden_layers": 32, "vocab_size": 32064, "max_position_embeddings": 4096},
        {"depths": [3, 4, 30, 3], "hidden_sizes": [384, 768, 1536, 3072], "image_size": 320},
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
STAGES = {
    "stage 1": ["adapters", "routers", "projector", "projections"],
    "stage 2": ["vision_tower", "adapters", "routers", "projector", "language_model", "projections"],
}
TEXT, LABELS = 64, 32  # tokens of a sample beside those of its image, and those that are labels
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
    shape = BatchShape(batch_size, batch_size, vision.num_patches + TEXT, PROMPT, batch_size * LABELS)
    batch = shape.make(student)
    input_ids = torch.randint(0, token, batch["input_ids"].shape)
    input_ids[:, : vision.num_patches] = token
    labels = torch.full_like(input_ids, -100)
    labels[:, -LABELS:] = input_ids[:, -LABELS:]
    side = vision.image_size
    batch |= {
        "input_ids": input_ids,
        "labels": labels,
        "label_index": (labels.flatten() != -100).nonzero().squeeze(-1),
        "num_label_tokens": torch.tensor(batch_size * LABELS),
        "prompt_ids": input_ids[:, -LABELS - PROMPT : -LABELS],
        "image_index": torch.arange(batch_size),
        "num_squares": torch.tensor(batch_size),
        "pixel_values": torch.randn(batch_size, 3, side, side),
    }
    return {name: value.to(device) for name, value in batch.items()}


class Step:
    """Runs steps of one module, and times their parts."""

    def __init__(self, module: StudentWithObjective, teachers: list[Teacher], batch: dict, images: torch.Tensor):
        self.module, self.teachers, self.batch, self.images = module, teachers, batch, images
        self.clock = process_clock(images.device)

    def precision(self) -> Any:
        return torch.autocast("cuda", torch.bfloat16, enabled=self.images.is_cuda)

    def see(self) -> list[torch.Tensor]:
        """The features of the teachers."""
        with torch.no_grad():
            return [teacher(self.images) for teacher in self.teachers]

    def forward(self, features: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        with self.precision():
            return self.module(features, self.batch)

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()
        self.module.zero_grad(set_to_none=True)

    def run(self) -> None:
        self.backward(self.forward(self.see())[0])

    def seconds(self) -> dict[str, float]:
        """The seconds of each part of a step."""

        def now() -> float:
            if self.images.is_cuda:
                torch.cuda.synchronize()
            return self.clock()

        start = now()
        features = self.see()
        seen = now()
        loss, _ = self.forward(features)
        computed = now()
        self.backward(loss)
        return {"teachers": seen - start, "forward": computed - seen, "backward": now() - computed}


def train_parts(module: StudentWithObjective, parts: list[str]) -> None:
    """Lets only these parts learn."""
    objective: Any = module.objective
    set_trainable(module.student, [part for part in parts if part != "projections"])
    objective.set_trainable(parts)


def on_gpu(stage: str, steps: dict[str, Step]) -> Iterator[Comparison]:
    """The share of the GPU's peak that HAWAII's step reaches, and memory. A wait for the GPU is an error."""
    ours, peaks = steps["hawaii"], []
    torch.cuda.set_sync_debug_mode("error")
    ours.run()
    torch.cuda.set_sync_debug_mode("default")
    with FlopCounterMode(display=False) as counter:
        ours.run()
    seconds = min(sum(ours.seconds().values()) for _ in range(5))
    peak = find_peak(torch.cuda.get_device_name())
    if peak is not None:
        reached = (counter.get_total_flops() / seconds / 1e12, peak / 1e12)
        goal = {"at_least": 0.45} if stage == "stage 1" else {}
        yield Comparison(f"{stage}: operations of a step", "HAWAII", "the GPU's peak", [reached], "TFLOP/s", **goal)
    for step in steps.values():
        torch.cuda.reset_peak_memory_stats()
        step.run()
        peaks.append(torch.cuda.max_memory_allocated() / 2**30)
    yield Comparison(f"{stage}: peak memory, without an optimizer", "HAWAII", "LLaVA", [(peaks[0], peaks[1])], "GiB")


def measure_step(size: str = "small", batch_size: int = 4, rounds: int = 7) -> Iterator[Comparison]:
    """Compares steps on random images and tokens; `size` is one of `SIZES`."""
    device = find_device()
    torch.manual_seed(0)
    teachers = make_teachers(size, device)
    modules = make_modules(size, teachers, device)
    batch = make_batch(modules["hawaii"], batch_size, device)
    side = max(teacher.image_size for teacher in teachers)
    images = torch.randint(256, (batch_size, 3, side, side), dtype=torch.uint8, device=device)
    steps = {
        "hawaii": Step(modules["hawaii"], teachers, batch, images),
        "llava": Step(modules["llava"], [], batch, images),
    }
    for stage, parts in STAGES.items():
        for module in modules.values():
            train_parts(module, parts)
        texts = [step.forward(step.see())[1]["text"] for step in steps.values()]
        torch.testing.assert_close(texts[0], texts[1], rtol=1e-3, atol=1e-3)
        for step in steps.values():
            step.run()  # warms it up
        pairs: dict[str, list[tuple[float, float]]] = {}
        for _ in range(rounds):
            ours, theirs = ({part: 1e3 * value for part, value in step.seconds().items()} for step in steps.values())
            whole = sum(theirs.values())
            cached = ours["forward"] + ours["backward"]
            for name, pair in {
                "a step with teachers": (cached + ours["teachers"], whole),
                "a step with features from a cache": (cached, whole),
                "forward pass": (ours["forward"], theirs["forward"]),
                "backward pass": (ours["backward"], theirs["backward"]),
            }.items():
                pairs.setdefault(name, []).append(pair)
        for name, values in pairs.items():
            yield Comparison(f"{stage}: {name}", "HAWAII", "LLaVA", values)
        if device.type == "cuda":
            yield from on_gpu(stage, steps)
    objective: Any = modules["hawaii"].objective
    one_by_one = copy.copy(objective.options)
    one_by_one.sequential_passes = True
    options = {"one batch": objective.options, "one batch for each pass": one_by_one}
    features = steps["hawaii"].see()

    def step(name: str) -> torch.Tensor:
        objective.options = options[name]
        loss, _ = steps["hawaii"].forward(features)
        steps["hawaii"].backward(loss)
        return loss.detach()

    ways: dict[str, Callable] = {name: partial(step, name) for name in options}
    yield compare("stage 2: all passes of the encoder", ways, rounds, process_clock(device))


def main() -> None:
    parser = make_parser(__doc__, batch_size=4, rounds=7)
    parser.add_argument("--size", choices=SIZES, default="small")
    arguments = parser.parse_args()
    print_comparisons(measure_step(**vars(arguments)), arguments)


if __name__ == "__main__":
    main()
