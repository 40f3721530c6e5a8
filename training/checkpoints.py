"""Checkpoints that are never incomplete and from which training resumes exactly."""

import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint, sort_checkpoints

from ..files.atomic import OLD_SUFFIX, remove_folder
from ..files.run_contents import CHECKPOINT_STATE_FILES, OBJECTIVE_FILE
from ..files.user_error import UserError, explain_errors
from .recipes.objectives import StudentWithObjective
from .students.frozen_base import FrozenBase


def find_checkpoint(output_dir: str) -> str | None:
    """Returns the newest checkpoint of a run, or `None`. Incomplete ones have another name and are ignored."""
    return get_last_checkpoint(output_dir) if Path(output_dir).is_dir() else None


def remove_old_checkpoints(output_dir: str, save_total_limit: int | None) -> None:
    """
    Removes all but the newest `save_total_limit` checkpoints; removes none if that is `None` or zero.

    If the process is killed, no checkpoint lacks files; the next call removes what may be left of one.
    """
    for leftover in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*{OLD_SUFFIX}"):
        shutil.rmtree(leftover, ignore_errors=True)
    if not save_total_limit or save_total_limit < 0:
        return
    for checkpoint in sort_checkpoints(output_dir)[:-save_total_limit]:
        remove_folder(Path(checkpoint))


def save_objective(objective: nn.Module, folder: Path, state_dict: dict | None = None) -> None:
    """Saves the objective's weights in a separate file, which no published folder contains."""
    state_dict = objective.state_dict() if state_dict is None else state_dict
    save_file({name: tensor.contiguous() for name, tensor in state_dict.items()}, folder / OBJECTIVE_FILE)


def load_weights(module: nn.Module, weights: dict[str, torch.Tensor], source: Path, may_lack: set[str] | None = None):
    """
    Loads weights whose names and shapes must all match, except that names in `may_lack` may be missing.

    Raises:
        UserError: a name or a shape differs; the error names the first.
    """
    expected = {name: list(tensor.shape) for name, tensor in module.state_dict().items()}
    given = {name: list(tensor.shape) for name, tensor in weights.items()}
    names = (expected.keys() | given.keys()) - ((may_lack or set()) - given.keys())
    different = sorted(name for name in names if expected.get(name) != given.get(name))
    if different:
        name = different[0]
        raise UserError(
            f"{source} does not fit this recipe: {len(different)} weights differ, {name} is "
            f"{given.get(name, 'missing')} there and {expected.get(name, 'missing')} here. Give the recipe "
            "another output_dir, or undo its changes."
        )
    module.load_state_dict(weights, strict=False)


def load_objective(objective: nn.Module, folder: str | Path) -> None:
    """Loads the weights that [`save_objective`] saved; every name and shape must match."""
    path = Path(folder) / OBJECTIVE_FILE
    if not path.is_file():
        raise UserError(f"{path} is missing, so training cannot continue from there. Remove the folder to start over.")
    with explain_errors(f"{path} cannot be read", SafetensorError):
        weights = load_file(path)
    load_weights(objective, weights, path)


def check_random_states(checkpoint: str | Path, num_processes: int) -> None:
    """
    Checks that the checkpoint has the RNG state of every process of this run.

    Raises:
        UserError: it has none, or it was written by another number of processes.
    """
    found = {path.name for path in Path(checkpoint).glob("rng_state*.pth")}
    if not found:
        raise UserError(f"{checkpoint} lacks rng_state.pth: it cannot be resumed. Remove it to use an earlier one.")
    expected = {"rng_state.pth"} if num_processes == 1 else {f"rng_state_{i}.pth" for i in range(num_processes)}
    if found != expected:
        raise UserError(
            f"{checkpoint} was written by {len(found)} processes and this run has {num_processes}: it cannot be "
            f"resumed exactly. Start {len(found)}, or remove it and the earlier ones to start over."
        )


def check_state_files(checkpoint: str | Path, names: Iterable[str]) -> None:
    """
    Checks that the checkpoint has every file that an exact resume needs.

    Raises:
        UserError: one is missing; names all that are.
    """
    missing = [name for name in names if not (Path(checkpoint) / name).exists()]
    if missing:
        raise UserError(
            f"{checkpoint} lacks {', '.join(missing)}: it cannot be resumed. Remove it to use an earlier one."
        )


def load_checkpoint(module: StudentWithObjective, checkpoint: str | Path, base: FrozenBase | None = None) -> None:
    """
    Loads a checkpoint's weights into the module that trains; with a frozen base, those that train.

    Raises:
        UserError: a file that an exact resume needs is missing, or the weights do not fit the module.
    """
    checkpoint = Path(checkpoint)
    check_state_files(checkpoint, CHECKPOINT_STATE_FILES)
    if base is not None:
        frozen = set(module.student.state_dict()) - set(base.names)
        load_weights(module.student, base.load_trained(checkpoint), checkpoint, may_lack=frozen)
    else:
        weights = {}
        for path in sorted(checkpoint.glob("model*.safetensors")):
            with explain_errors(f"{path} cannot be read", SafetensorError):
                weights |= load_file(path)
        tied = set(module.student._tied_weights_keys or {})  # empty for an encoder, whose configuration lacks it
        tied = tied if tied and module.student.config.tie_word_embeddings else set()
        load_weights(module.student, weights, checkpoint, may_lack=tied)
    load_objective(module.objective, checkpoint)
