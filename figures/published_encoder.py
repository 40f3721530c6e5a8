"""The encoder of a published folder."""

from pathlib import Path
from typing import Any

import torch

from ..evaluation.checkpoint import ENCODER_TYPE, MODEL_TYPE
from ..evaluation.lmms.loading import load_checkpoint
from ..files.user_error import UserError
from ..hub_cards.card import read_config


def check_is_hawaii(folder: Path, name: str | Path) -> None:
    """
    Checks that a checkpoint is one of this package.

    Raises:
        UserError: It is that of another model. The message calls it `name`.
    """
    model_type = read_config(folder).get("model_type")
    if model_type not in (MODEL_TYPE, ENCODER_TYPE):
        raise UserError(f"{name} contains a {model_type}; the figure needs a HAWAII, or the encoder of one.")


def load_published_encoder(folder: Path) -> tuple[Any, Any]:
    """
    Loads an encoder and its processor onto the first accelerator, or the CPU if there is none.

    Args:
        folder (`Path`):
            Published folder of a model or of an encoder alone, see [`checkpoint_folder`].

    Returns:
        `tuple[HawaiiVisionModel, HawaiiProcessor or EncoderProcessor]`
    """
    if read_config(folder)["model_type"] == ENCODER_TYPE:
        from ..training.students.encoders import load_encoder  # a published model needs nothing of training

        encoder, processor = load_encoder(folder, "auto")
    else:
        model, processor = load_checkpoint(str(folder), dtype="auto")
        encoder = model.model.vision_tower
    if torch.accelerator.is_available():
        encoder.to(torch.accelerator.current_accelerator())
    return encoder.eval(), processor
