"""A training step in parts, with the teachers or with features that are known."""

from contextlib import nullcontext
from typing import Any

import torch

from hawaii.benchmarks.measuring.command import process_clock
from hawaii.training.recipes.objectives import StudentWithObjective
from hawaii.training.students.trainable import set_trainable
from hawaii.training.teachers.teacher import Teacher


class Step:
    """
    Runs steps of one module, and times their parts.

    Args:
        module (`StudentWithObjective`):
            What trains.
        teachers (`list[Teacher]`):
            Its teachers; empty if it has none.
        batch (`dict[str, torch.Tensor]`), images (`torch.ByteTensor`):
            A batch, and its images for the teachers. On a GPU the module computes in bfloat16, unless `is_exact` is
            set, as for comparing results.
    """

    def __init__(self, module: StudentWithObjective, teachers: list[Teacher], batch: dict, images: torch.Tensor):
        self.module, self.teachers, self.batch, self.images = module, teachers, batch, images
        self.clock = process_clock(images.device)
        self.is_exact = False

    def precision(self) -> Any:
        is_half = self.images.is_cuda and not self.is_exact
        return torch.autocast("cuda", torch.bfloat16) if is_half else nullcontext()

    def teacher_features(self) -> list[torch.Tensor]:
        """The features of the teachers, computed again."""
        with torch.no_grad():
            return [teacher(self.images) for teacher in self.teachers]

    def forward(self, features: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        with self.precision():
            return self.module(features, self.batch)

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()
        self.module.zero_grad(set_to_none=True)

    def run(self) -> None:
        self.backward(self.forward(self.teacher_features())[0])

    def seconds(self) -> dict[str, float]:
        """The seconds of each part of a step."""

        def now() -> float:
            if self.images.is_cuda:
                torch.cuda.synchronize()
            return self.clock()

        start = now()
        features = self.teacher_features()
        known = now()
        loss, _ = self.forward(features)
        computed = now()
        self.backward(loss)
        return {"teachers": known - start, "forward": computed - known, "backward": now() - computed}


def train_parts(module: StudentWithObjective, parts: list[str]) -> None:
    """Lets only these parts learn."""
    objective: Any = module.objective
    set_trainable(module.student, [part for part in parts if part != "projections"])
    objective.set_trainable(parts)
