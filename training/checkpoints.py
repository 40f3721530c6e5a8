"""Checkpoints that are never incomplete and from which training resumes exactly."""

import re
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..files.atomic import OLD_SUFFIX, remove_folder
from ..files.manifest import check_listed_files, find_added_files
from ..files.run_contents import CHECKPOINT_STATE_FILES, OBJECTIVE_FILE
from ..files.user_error import UserError, explain_errors
from .recipes.objectives import StudentWithObjective
from .students.frozen_base import FrozenBase


# A resume reads every `model*.safetensors`, a `scaler.pt` and random numbers, if there are any, and states of
# FSDP and DeepSpeed. All have one of these suffixes: another added file, such as a note of the user, does no harm.
STATE_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".distcp")


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """The checkpoints of a stage from the oldest to the newest. Incomplete ones have another name."""
    found = Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
    names = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(0|[1-9][0-9]*)")
    return sorted((path for path in found if names.fullmatch(path.name)), key=_step_of)


@dataclass(frozen=True)
class FoundCheckpoint:
    """
    Args:
        path (`Path`):
            The newest whole checkpoint.
        identity (`dict`):
            Identity of the run that wrote it, see [`describe_stage`], with its `step`.
        skipped (`list[str]`):
            For each newer checkpoint, a sentence that says why it was skipped.
    """

    path: Path
    identity: dict
    skipped: list[str]


def _check_checkpoint(path: Path) -> dict:
    """
    Returns the identity of a whole checkpoint.

    Raises:
        UserError: a file is missing, damaged, or added and would be read, or the checkpoint is of another step than
            its name. The message has no final period.
    """
    for added in find_added_files(path):
        if added.suffix in STATE_SUFFIXES:
            raise UserError(f"{added} is not in the manifest of its folder")
    identity = check_listed_files(path)
    if identity["step"] != _step_of(path):
        raise UserError(f"{path} is of step {identity['step']} by its manifest: the folder was renamed")
    return identity


def find_checkpoint(output_dir: str | Path) -> FoundCheckpoint | None:
    """
    Returns the newest checkpoint of a stage that agrees with its manifest, or `None` if the stage has none at all.

    Raises:
        UserError: there are checkpoints, but none is whole. The stage does not start over automatically, because a
            backup may still contain days of training.
    """
    for old in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*{OLD_SUFFIX}"):
        final = old.with_name(old.name.removesuffix(OLD_SUFFIX))
        if not final.exists():  # killed between the two renames of a step that is saved twice, or during its removal
            with suppress(UserError, OSError):
                check_listed_files(old)
                old.rename(final)
    problems = []
    for path in reversed(list_checkpoints(output_dir)):
        try:
            return FoundCheckpoint(path, _check_checkpoint(path), problems)
        except (UserError, OSError) as error:
            problems.append(f"{path} is skipped, because {error}.")
    if not problems:
        return None
    raise UserError(
        f"None of the {len(problems)} checkpoints in {output_dir} is whole: {problems[0].partition('because ')[2]} "
        "Restore one of them from a copy, or remove them to train the stage from its start."
    )


def remove_old_checkpoints(output_dir: str | Path, save_total_limit: int | None, step: int) -> None:
    """
    Removes all but the newest `save_total_limit` checkpoints up to a step; removes none if that is `None` or zero.

    The checkpoint of the step is whole, because it has just been written or read. Checkpoints of later steps are
    damaged, or training would have continued from them: they are not counted, and remain until training reaches their
    steps again. If the process is killed, no checkpoint lacks files; the next call removes leftovers.
    """
    for leftover in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*{OLD_SUFFIX}"):
        shutil.rmtree(leftover, ignore_errors=True)
    if not save_total_limit or save_total_limit < 0:
        return
    old = [path for path in list_checkpoints(output_dir) if _step_of(path) <= step]
    for checkpoint in old[:-save_total_limit]:
        remove_folder(checkpoint)


def save_objective(objective: nn.Module, folder: Path, state_dict: dict | None = None) -> None:
    """Saves the objective's weights in a separate file, which no published folder contains."""
    state_dict = objective.state_dict() if state_dict is None else state_dict
    save_file({name: tensor.contiguous() for name, tensor in state_dict.items()}, folder / OBJECTIVE_FILE)


def load_weights(module: nn.Module, weights: dict[str, torch.Tensor], source: Path, may_lack: set[str] | None = None):
    """
    Loads weights whose names and shapes must all match, except that names in `may_lack` may be missing.

    Raises:
        UserError: a name or a shape differs. The message names the first one.
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
    """
    Loads the weights that [`save_objective`] saved; every name and shape must match, except those of modules that the
    objective leaves out.
    """
    path = Path(folder) / OBJECTIVE_FILE
    if not path.is_file():
        raise UserError(f"{path} is missing, so training cannot continue from there. Remove the folder to start over.")
    with explain_errors(f"{path} cannot be read", SafetensorError):
        weights = load_file(path)
    modules = {name.partition(".")[0] for name in objective.state_dict()}
    used = {name: weight for name, weight in weights.items() if name.partition(".")[0] in modules}
    load_weights(objective, used, path)


def check_state_files(checkpoint: str | Path, names: Iterable[str]) -> None:
    """
    Checks that the checkpoint has every file that an exact resume needs.

    Raises:
        UserError: a file is missing. The message names all missing files.
    """
    missing = [name for name in names if not (Path(checkpoint) / name).exists()]
    if missing:
        raise UserError(
            f"{checkpoint} lacks {', '.join(missing)}, which this run needs, although the checkpoint is whole: "
            "start the run with the strategy that wrote it, or remove this checkpoint and all earlier ones to train "
            "the stage from its start."
        )


def load_checkpoint(module: StudentWithObjective, checkpoint: str | Path, base: FrozenBase | None = None) -> None:
    """
    Loads a checkpoint's weights into the trained module; with a frozen base, only the trained weights.

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
        tied = set(module.student._tied_weights_keys or {})  # empty for an encoder
        tied = tied if tied and module.student.config.tie_word_embeddings else set()
        load_weights(module.student, weights, checkpoint, may_lack=tied)
    load_objective(module.objective, checkpoint)
