"""Checkpoints that are whole or absent, and resume to exactly where they were."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint, sort_checkpoints

from ..files.atomic import OLD_SUFFIX, remove_folder
from ..files.run_contents import CHECKPOINT_STATE_FILES, OBJECTIVE_FILE
from ..files.user_error import UserError
from .recipes.objectives import StudentWithObjective


def find_checkpoint(output_dir: str) -> str | None:
    """The newest checkpoint of a run, or `None`. Unfinished ones bear another name and are not seen."""
    return get_last_checkpoint(output_dir) if Path(output_dir).is_dir() else None


def remove_old_checkpoints(output_dir: str, save_total_limit: int | None) -> None:
    """
    Removes all but the newest `save_total_limit` checkpoints; none where that is `None` or zero.

    A kill in between leaves no checkpoint that lacks files, and at most a leftover that the next call clears.
    """
    for leftover in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*{OLD_SUFFIX}"):
        shutil.rmtree(leftover, ignore_errors=True)
    if not save_total_limit or save_total_limit < 0:
        return
    for checkpoint in sort_checkpoints(output_dir)[:-save_total_limit]:
        remove_folder(Path(checkpoint))


def save_objective(objective: nn.Module, folder: Path, state_dict: dict | None = None) -> None:
    """Writes what of the objective trains into a file of its own, which no published folder holds."""
    state_dict = objective.state_dict() if state_dict is None else state_dict
    save_file({name: tensor.contiguous() for name, tensor in state_dict.items()}, folder / OBJECTIVE_FILE)


def load_weights(module: nn.Module, weights: dict[str, torch.Tensor], source: Path, may_lack: set[str] | None = None):
    """
    Loads every weight by its own name, and accepts no other.

    Raises:
        ValueError: a name or a shape differs; the first is given.
    """
    own = {name: list(tensor.shape) for name, tensor in module.state_dict().items()}
    given = {name: list(tensor.shape) for name, tensor in weights.items()}
    names = (own.keys() | given.keys()) - ((may_lack or set()) - given.keys())
    different = sorted(name for name in names if own.get(name) != given.get(name))
    if different:
        name = different[0]
        raise UserError(
            f"{source} does not fit this recipe: {len(different)} weights differ, {name} is "
            f"{given.get(name, 'missing')} there and {own.get(name, 'missing')} here. Give the recipe another "
            "output_dir, or undo what was changed in it."
        )
    module.load_state_dict(weights, strict=False)


def load_objective(objective: nn.Module, folder: str | Path) -> None:
    """Reads what [`save_objective`] wrote; every name and shape must agree."""
    path = Path(folder) / OBJECTIVE_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing, so training cannot go on from there. Remove the folder to start over."
        )
    load_weights(objective, load_file(path), path)


def load_student(student: PreTrainedModel, checkpoint: Path) -> None:
    """Reads the weights of a saved student; every name and shape must agree."""
    weights = {}
    for path in sorted(checkpoint.glob("model*.safetensors")):
        weights |= load_file(path)
    tied = set(student._tied_weights_keys or {})  # none of an encoder alone, whose configuration says nothing of them
    tied = tied if tied and student.config.tie_word_embeddings else set()
    load_weights(student, weights, checkpoint, may_lack=tied)


def check_random_states(checkpoint: str | Path, num_processes: int) -> None:
    """
    Makes sure that every process of this run finds the random numbers it left off with.

    Raises:
        FileNotFoundError: the checkpoint holds none.
        ValueError: another number of processes wrote it.
    """
    found = {path.name for path in Path(checkpoint).glob("rng_state*.pth")}
    if not found:
        raise FileNotFoundError(
            f"{checkpoint} lacks rng_state.pth: it cannot be resumed. Remove it to use an earlier one."
        )
    expected = {"rng_state.pth"} if num_processes == 1 else {f"rng_state_{i}.pth" for i in range(num_processes)}
    if found != expected:
        raise UserError(
            f"{checkpoint} was written by a run of {len(found)} processes and this one has {num_processes}: it cannot "
            f"be resumed exactly. Start {len(found)}, or remove it and those before it to start over."
        )


def load_checkpoint(module: StudentWithObjective, checkpoint: str | Path) -> None:
    """
    Puts a checkpoint's weights into the module that trains.

    Raises:
        FileNotFoundError: a file that an exact resume needs is missing.
        ValueError: the weights are not those of this model.
    """
    checkpoint = Path(checkpoint)
    missing = [name for name in CHECKPOINT_STATE_FILES if not any(checkpoint.glob(name))]
    if missing:
        raise FileNotFoundError(
            f"{checkpoint} lacks {', '.join(missing)}: it cannot be resumed. Remove it to use an earlier one."
        )
    load_student(module.student, checkpoint)
    load_objective(module.objective, checkpoint)
