"""The files by which lmms-eval knows the tasks of this package, and the data that they name."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import yaml

from ...files.user_error import UserError
from .benchmarks import BENCHMARKS, DATA_SETS, GQA_IMAGES


TASKS = Path(__file__).parents[1] / "tasks"
# Tasks that `hawaii data` makes the questions of, and these under the output directory.
DATA_FILES = {"easy_vqa": "data/test.parquet", "emoji_vqa": "data/test.parquet"}


def find_data_files(names: Sequence[str], output_dir: Path, data_file: str | None) -> dict[str, Path]:
    """
    The file of questions of each task that `hawaii data` makes.

    Raises:
        ValueError: there is none, or one file for two tasks, or for no task at all.
    """
    own = [name for name in names if name in DATA_FILES]
    if len(own) > 1:
        raise UserError(f"{' and '.join(own)} would be asked the questions of one file: name one of them at a time.")
    if data_file is not None and not own:
        raise UserError(
            f"--data_file {data_file} holds questions of {' or '.join(DATA_FILES)}, but {', '.join(names)} is asked."
        )
    files = {name: Path(data_file or output_dir / DATA_FILES[name]) for name in own}
    for name, path in files.items():
        if data_file is not None and not path.is_file():
            raise UserError(f"{name} has no questions: there is no {path}.")
        if not path.is_file():
            raise UserError(
                f"{name} has no questions: there is no {path}. "
                f"`hawaii data {name} --output_dir {output_dir}` makes it; --data_file names one elsewhere."
            )
    return files


def check_data_folder(names: Sequence[str], folder: Path) -> None:
    """
    Looks into the data of each benchmark of the paper that is asked for, before anything slow begins.

    Args:
        names (`Sequence[str]`):
            Tasks.
        folder (`Path`):
            Holds, under the name of each benchmark, what `DatasetDict.save_to_disk` leaves.

    Raises:
        ValueError: a data set, its split or a column is not there, or a task gets its data elsewhere.
    """
    if strange := [name for name in names if name not in BENCHMARKS and name not in DATA_FILES]:
        raise UserError(f"--data_folder holds the paper's benchmarks alone; {', '.join(strange)} is none of them.")
    required = {name: BENCHMARKS[name].columns for name in names if name in BENCHMARKS}
    if "gqa" in required:
        required[GQA_IMAGES] = ("id", "image")
    for name, columns in required.items():
        _check_data(folder / name, DATA_SETS[name][2], columns)


def _check_data(folder: Path, split: str, columns: Sequence[str]) -> None:
    from datasets import DatasetDict, load_from_disk

    try:
        data = load_from_disk(folder)
    except FileNotFoundError as error:
        raise UserError(
            f"{folder} holds no data: DatasetDict.save_to_disk leaves such a folder (docs/evaluation.md shows how)."
        ) from error
    splits = [str(name) for name in data] if isinstance(data, DatasetDict) else []
    if not isinstance(data, DatasetDict) or split not in splits:
        found = f"the splits {', '.join(splits)}" if splits else "a data set without splits"
        raise UserError(f"{folder} holds {found}, but the benchmark is asked on the split {split}.")
    if missing := [name for name in columns if name not in data[split].column_names]:
        raise UserError(f"{folder}: the split {split} lacks the columns {', '.join(missing)}.")


def write_task_files(
    names: Sequence[str], data_files: dict[str, Path], data_folder: Path | None, scratch: Path
) -> Path:
    """
    Writes a task for each of this package that is asked for: it includes the one that is kept here and names its data.

    Args:
        names (`Sequence[str]`):
            Tasks; those of lmms-eval alone are passed over.
        data_files (`dict[str, Path]`):
            What [`find_data_files`] found.
        data_folder (`Path`, *optional*):
            What [`check_data_folder`] looked into; without it the paper's benchmarks are read from the Hub.
        scratch (`Path`):
            An empty folder.

    Returns:
        `Path`: the folder of the tasks.
    """
    (scratch / "tasks").mkdir()
    lmms_eval = find_spec("lmms_eval")
    assert lmms_eval is not None and lmms_eval.origin is not None
    packaged = Path(lmms_eval.origin).parent / "tasks"
    for name in names:
        if name in BENCHMARKS:
            # Of two files that are included, the first wins.
            include = [str(TASKS / "paper" / f"{name}.yaml"), str(packaged / BENCHMARKS[name].packaged)]
            task = {"task": name, "include": include}
            if data_folder is not None:
                task |= {"dataset_path": str(data_folder.resolve() / name), "dataset_name": None}
                task |= {"dataset_kwargs": {"load_from_disk": True}}
        elif name in data_files:
            task = {
                "task": name,
                "include": str(TASKS / name / f"{name}.yaml"),
                # datasets keeps a copy of what it reads: here, where it goes away with the folder.
                "dataset_kwargs": {
                    "data_files": {"test": str(data_files[name].resolve())},
                    "cache_dir": str(scratch / "datasets"),
                },
            }
        else:
            continue
        (scratch / "tasks" / f"{name}.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    return scratch / "tasks"
