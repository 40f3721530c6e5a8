"""The identity of a run: the options and data that its results depend on, and its comparison with a checkpoint's."""

import os
from collections.abc import Iterable
from dataclasses import MISSING, Field, asdict, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from transformers import TrainingArguments

from ..files.atomic import visible_files
from ..files.digest import digest, digest_files
from ..files.manifest import read_files
from ..files.model_folder import JSON_FILES
from ..files.user_error import UserError
from .recipes.objectives import OBJECTIVES
from .recipes.options import STAGE_ARGUMENTS, WITHOUT_EFFECT
from .recipes.recipe import NOT_GIVEN, Stage, first_different_value
from .sources.cache import cache_path


# Options that name a model or a file.
PATHS = ("vision_tower", "language_model", "llava", "tokenizer", "chat_template", "checkpoint")
# Files of a model's folder that libraries load. Others, such as a README.md, may change.
LOADED_NAMES = {*JSON_FILES, "vocab.json", "vocab.txt", "merges.txt", "chat_template.json"}
LOADED_SUFFIXES = {".safetensors", ".bin", ".gguf", ".model", ".pth", ".tiktoken", ".jinja", ".py"}
# Compared separately: teachers with the values of their presets, and accumulation with the number of processes.
NAMED_APART = {
    "samples": "usable records",
    "mixed_precision": "mixed precision",
    "features": "features of a teacher_cache",
}
COMPARED_APART = {"teachers", "gradient_accumulation_steps"}


def _names_in(folder: Path, paths: Iterable[Path]) -> list[bytes]:
    return [str(path.relative_to(folder)).encode(errors="backslashreplace") for path in paths]


def _digest_model(path: Path) -> str:
    """A hash of the names and contents of the files that a model, a tokenizer or a template is loaded from."""
    if path.is_file():
        return digest_files([path])
    found = filter(Path.is_file, visible_files(path))
    files = [file for file in found if file.name in LOADED_NAMES or file.suffix in LOADED_SUFFIXES]
    return digest(b"\n".join(_names_in(path, files)), digest_files(files).encode())


def describe_path(name: str) -> Any:
    """A local file or model is described by its content, so that it may be moved; a hub id is its own description."""
    # os.path.exists, since an inline chat template is too long for Path.exists.
    return {"path": name, "content_hash": _digest_model(Path(name))} if os.path.exists(name) else name


def _describe(name: str, value: Any) -> Any:
    """The JSON value of an option."""
    if name in PATHS and isinstance(value, str):
        return describe_path(value)
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, dict):
        return {str(key): _describe(str(key), item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_describe("", item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _default(field: Field) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default


def describe_options(stage: Stage) -> dict[str, Any]:
    """The options of a stage that have an effect on its numbers and differ from their defaults, as JSON values."""
    options = {}
    for arguments in (stage.model, stage.data, stage.training, stage.options):
        for field in fields(arguments):
            if field.name not in stage.given or field.name in WITHOUT_EFFECT | COMPARED_APART:
                continue
            if (value := getattr(arguments, field.name)) != _default(field):
                options[field.name] = _describe(field.name, value)
    if stage.data.data is not None:
        options["data"] = [
            {name: value for name, value in asdict(source).items() if name not in ("path", "image_folder")}
            for source in stage.data.sources
        ]
    if stage.data.is_streaming:  # the order depends on the number of readers
        options["dataloader_num_workers"] = max(1, stage.training.dataloader_num_workers)
    teachers = {teacher.name: asdict(teacher) for teacher in stage.distilled_teachers}
    options["teachers"] = list(teachers)
    options["teacher"] = {name: _describe(name, teacher) for name, teacher in teachers.items()}
    return options


def describe_data(data_paths: Iterable[str]) -> list[str]:
    """
    Describes the content of the data: a file by its hash, a folder by a hash of its files' names and sizes, and a data
    set of the Hub, or a missing file, by its name.
    """
    return [_describe_content(path) for path in data_paths]


def _describe_content(value: str) -> str:
    if not os.path.exists(value):
        return value
    path = Path(value)
    if path.is_file():
        return digest(path)
    files = [file for file in visible_files(path) if file.is_file()]
    sizes = (file.stat().st_size for file in files)
    return digest(*(b"%b %d\n" % each for each in zip(_names_in(path, files), sizes)))


def describe_start(previous: Path | None) -> str | None:
    """A hash of the weights in the finished stage from which a stage starts, as its manifest lists them."""
    if previous is None:
        return None
    files = read_files(previous)
    return digest(*(files[name]["hash"].encode() for name in sorted(files) if name.endswith(".safetensors")))


def describe_stage(stage: Stage, previous: Path | None, world_size: int) -> dict[str, Any]:
    """
    The identity of a stage's run, for the manifests of its checkpoints and of the finished stage.

    Args:
        stage (`Stage`):
            The stage.
        previous (`Path`, *optional*):
            Folder of the finished stage from which it starts.
        world_size (`int`):
            Number of processes.

    Returns:
        `dict[str, Any]`: `recipe`, a hash of `options`; `options`; `data` and `data_paths`; `start`; `world_size`;
        `gradient_accumulation_steps`.
    """
    options = describe_options(stage)
    data_paths = [source.path for source in stage.data.sources] or [stage.data.image_folder]
    return {
        "recipe": digest(repr(sorted(options.items())).encode()),
        "options": options,
        "data": describe_data(data_paths),
        "data_paths": data_paths,
        "start": describe_start(previous),
        "world_size": world_size,
        "gradient_accumulation_steps": stage.training.gradient_accumulation_steps,
    }


def _moved(there: Any, here: Any) -> Any:
    """Returns `there` with the paths of `here` where the content is equal."""
    if isinstance(there, dict) and "content_hash" in there and isinstance(here, str):  # the path no longer exists
        return there["path"]
    if isinstance(there, dict) and isinstance(here, dict):
        if "content_hash" in there and "content_hash" in here:
            return {**there, "path": here["path"]}
        return {key: _moved(value, here.get(key)) for key, value in there.items()}
    return there


def _find_other_option(there: dict[str, Any], here: dict[str, Any]) -> str | None:
    """Returns the first option with an effect that differs, with both values; `None` if none does."""
    old, new = (each["options"] for each in (there, here))
    defaults = {
        field.name: _describe(field.name, _default(field))
        for options in (new, old)
        for arguments in (*STAGE_ARGUMENTS, OBJECTIVES[options.get("objective", "hawaii")].options_class)
        for field in fields(arguments)
    }
    for name in [*new, *(name for name in old if name not in new)]:
        values = [options.get(name, defaults.get(name, NOT_GIVEN)) for options in (old, new)]
        if difference := first_different_value(_moved(*values), values[1], name):
            return difference
    # With other processes, another accumulation can have the same steps, see `check_processes`.
    name = "gradient_accumulation_steps"
    if there["world_size"] == here["world_size"] and there[name] != here[name]:
        return f"{name} is {there[name]} there and {here[name]} here"
    return None


def _find_changed_data(there: dict[str, Any], here: dict[str, Any]) -> str | None:
    """
    Returns the path of the first data that differs. Data that was removed after training has not changed: a finished
    stage does not need it, and an unfinished one cannot read it.
    """
    for old, new, old_path, new_path in zip(*(each[key] for key in ("data", "data_paths") for each in (there, here))):
        is_removed = old_path == new_path and not os.path.exists(new_path)
        if old != new and not is_removed:
            return new_path
    return None


def check_run(folder: Path, there: dict[str, Any], here: dict[str, Any]) -> None:
    """
    Checks that a checkpoint or a finished stage belongs to the run of a recipe.

    Raises:
        UserError: it belongs to a run with other options, data or initial weights. The message names the first
            difference.
    """
    if difference := _find_other_option(there, here):
        problem = f"was trained with another recipe: {difference}"
    elif path := _find_changed_data(there, here):
        problem = f"was trained on other data: {path} has changed since"
    elif there["start"] != here["start"]:
        problem = "started from other weights: the stage before it is another one, or has been trained again since"
    else:
        return
    raise UserError(
        f"{folder} {problem}. Undo the change, give the recipe another output_dir, or remove {folder.parent} to "
        "train this stage again."
    )


def samples_per_epoch(samples: int, batch_size: int, num_processes: int, drop_last: bool) -> int:
    """
    Number of samples in an epoch of all processes. accelerate distributes whole batches to the processes in turn.
    Several processes reuse the first samples to fill the last batches; a single process ends with a smaller batch.
    """
    dealt = batch_size * num_processes
    if drop_last:
        return samples // dealt * dealt
    return samples if num_processes == 1 else -(-samples // dealt) * dealt


def _find_other_steps(there: dict[str, Any], here: dict[str, Any], args: TrainingArguments) -> str | None:
    """Returns the reason why steps of another number of processes have other samples; `None` if they do not."""
    old, new = there["world_size"], here["world_size"]
    dealt, wanted = (each["world_size"] * each["gradient_accumulation_steps"] for each in (there, here))
    if AcceleratorState().distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        return "the state of a sharded run needs the same number of processes"
    if args.train_sampling_strategy not in ("random", "sequential") or here["options"].get("accelerator_config"):
        return f"train_sampling_strategy {args.train_sampling_strategy} depends on the number of processes"
    for name in ("max_batch_tokens", "max_batch_tiles"):
        if here["options"].get(name) is not None:
            return f"the batches of {name} depend on the number of processes"
    if here["samples"] is None:
        return "the order of a stream depends on the number of processes"
    if dealt != wanted:
        fitting = f"set gradient_accumulation_steps to {dealt // new}" if dealt % new == 0 else "no setting avoids it"
        return (
            f"a step would have {wanted} batches of {args.per_device_train_batch_size} samples instead of {dealt} "
            f"({fitting})"
        )
    step = wanted * args.per_device_train_batch_size
    ends_before = 0 < args.max_steps <= here["samples"] // step
    epochs = [
        samples_per_epoch(here["samples"], args.per_device_train_batch_size, number, args.dataloader_drop_last)
        for number in (old, new)
    ]
    if epochs[0] != epochs[1] and not ends_before:
        return f"an epoch of {here['samples']} samples would be filled up to {epochs[1]} instead of {epochs[0]}"
    return None


def check_processes(folder: Path, there: dict[str, Any], here: dict[str, Any], args: TrainingArguments) -> None:
    """
    Checks that the steps after a checkpoint have the same samples as without the interruption. With another number of
    processes, this requires a `gradient_accumulation_steps` with the same number of batches per step, and a sampler
    that makes the same batches of `per_device_train_batch_size`.

    Raises:
        UserError: the samples would differ. The message gives the reason and a way to get the same ones.
    """
    for name, noun in NAMED_APART.items():
        old, new = there.get(name), here.get(name)
        if old != new:
            cause = ""
            if name == "samples":
                files = cache_path("*.checked.json")
                cause = f" If `hawaii check` has run since then, it leaves out the bad ones: remove {files}."
            raise UserError(
                f"{folder} was trained with other {noun}: {old} there and {new} here.{cause} Undo the change, or give "
                "the recipe another output_dir."
            )
    old, new = there["world_size"], here["world_size"]
    if old != new and (reason := _find_other_steps(there, here, args)):
        raise UserError(
            f"{folder} was written by {old} processes and this run has {new}: it cannot be resumed exactly, because "
            f"{reason}. Start {old} processes."
        )
