"""Selects the parts of a student that are trained; the others are frozen."""

from collections.abc import Iterable

from ...files.user_error import UserError
from ...modeling_hawaii.vision_hawaii import HawaiiVisionModel
from ..objectives.encoder_passes import Student


def part_of(name: str) -> str:
    """Returns the part that a student's parameter belongs to, one of `TRAINABLE_PARTS`."""
    if name.startswith(("model.multi_modal_projector.", "model.image_newline")):
        return "projector"
    if name.startswith(("model.language_model.", "lm_head.")):
        return "language_model"
    if "adapters." in name:
        return "adapters"
    return "routers" if ".routing." in name else "vision_tower"


def check_rates(rates: Iterable[str], parts: set[str]) -> None:
    """Raises a `UserError` if a part has a learning rate but is not one of the `parts` with trained parameters."""
    for part in rates:
        if part not in parts:
            raise UserError(
                f"learning_rates has a rate for {part}, but no parameter of this part is trained: leave {part} out. "
                f"Trained are {', '.join(sorted(parts))}."
            )


def set_trainable(student: Student, trainable: list[str]) -> None:
    """
    Unfreezes the named parts of a student (see [`HawaiiTrainingArguments`]) and freezes the others.

    Raises:
        UserError: the student is an encoder alone, and none of its parts is named.
    """
    parts = {name: part_of(name) for name, _ in student.named_parameters()}
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(parts[name] in trainable)
    if isinstance(student, HawaiiVisionModel) and not set(trainable) & set(parts.values()):
        raise UserError(
            f"trainable is {trainable!r}, but the student is an encoder without a language model and has none of "
            f"these. Name some of its parts: {', '.join(sorted(set(parts.values())))}."
        )
