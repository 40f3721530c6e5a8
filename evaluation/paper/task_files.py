"""Task files for lmms-eval, and checks of their data."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import yaml

from ...files.user_error import UserError, explain_errors
from .benchmarks import BENCHMARKS, DATA_SETS, GQA_IMAGES


TASKS = Path(__file__).parents[1] / "tasks"
# Tasks with questions from `hawaii data`, and the path of the questions in the output folder.
DATA_FILES = {"easy_vqa": "data/test.parquet", "emoji_vqa": "data/test.parquet"}


def find_data_files(names: Sequence[str], output_dir: Path, data_file: str | None) -> dict[str, Path]:
    """
    Returns the question file of each task with questions from `hawaii data`.

    Raises:
        UserError: The file does not exist, or one file is given for two tasks or for none.
    """
    tasks = [name for name in names if name in DATA_FILES]
    if len(tasks) > 1:
        raise UserError(f"{' and '.join(tasks)} would read the same question file; evaluate them one at a time.")
    if data_file is not None and not tasks:
        raise UserError(
            f"--data_file {data_file} is for {' or '.join(DATA_FILES)}, but the tasks are {', '.join(names)}."
        )
    files = {name: Path(data_file or output_dir / DATA_FILES[name]) for name in tasks}
    for name, path in files.items():
        if data_file is not None and not path.is_file():
            raise UserError(f"{name} has no questions: there is no {path}.")
        if not path.is_file():
            raise UserError(
                f"{name} has no questions: there is no {path}. "
                f"Create it with `hawaii data {name} --output_dir {output_dir}` or give its path as --data_file."
            )
    return files


def check_data_folder(names: Sequence[str], folder: Path) -> None:
    """
    Checks the data of the requested benchmarks of the paper before anything slow starts.

    Args:
        names (`Sequence[str]`):
            Requested tasks.
        folder (`Path`):
            Has one folder per benchmark, written by `DatasetDict.save_to_disk`.

    Raises:
        UserError: A data set, split or column is missing, or a task does not read its data from this folder.
    """
    if others := [name for name in names if name not in BENCHMARKS and name not in DATA_FILES]:
        raise UserError(f"--data_folder is only for the paper's benchmarks, not for {', '.join(others)}; remove one.")
    required = {name: BENCHMARKS[name].columns for name in names if name in BENCHMARKS}
    if "gqa" in required:
        required[GQA_IMAGES] = ("id", "image")
    for name, columns in required.items():
        _check_data(folder / name, DATA_SETS[name][2], columns)


def _check_data(folder: Path, split: str, columns: Sequence[str]) -> None:
    from datasets import DatasetDict, load_from_disk

    try:
        with explain_errors(f"{folder} could not be read"):
            data = load_from_disk(folder)
    except FileNotFoundError as error:
        raise UserError(
            f"{folder} has no data; write it with DatasetDict.save_to_disk as in docs/evaluation.md."
        ) from error
    splits = [str(name) for name in data] if isinstance(data, DatasetDict) else []
    if not isinstance(data, DatasetDict) or split not in splits:
        content = f"the splits {', '.join(splits)}" if splits else "a data set without splits"
        raise UserError(f"{folder} has {content}, but the benchmark uses the split {split}.")
    if missing := [name for name in columns if name not in data[split].column_names]:
        raise UserError(f"The split {split} of {folder} has no columns {', '.join(missing)}.")


def write_task_files(
    names: Sequence[str], data_files: dict[str, Path], data_folder: Path | None, scratch: Path
) -> Path:
    """
    Writes a file for each requested task of this package, which includes the file in `tasks` and adds the data paths.

    Args:
        names (`Sequence[str]`):
            Requested tasks. Other tasks of lmms-eval are ignored.
        data_files (`dict[str, Path]`):
            Result of [`find_data_files`].
        data_folder (`Path`, *optional*):
            Folder with the data of the paper's benchmarks; defaults to the Hub.
        scratch (`Path`):
            Empty folder.

    Returns:
        `Path`: The folder with the task files.
    """
    (scratch / "tasks").mkdir()
    lmms_eval = find_spec("lmms_eval")
    assert lmms_eval is not None and lmms_eval.origin is not None
    packaged = Path(lmms_eval.origin).parent / "tasks"
    for name in names:
        if name in BENCHMARKS:
            # The first included file takes precedence.
            include = [str(TASKS / "paper" / f"{name}.yaml"), str(packaged / BENCHMARKS[name].packaged)]
            task = {"task": name, "include": include}
            if data_folder is not None:
                task |= {"dataset_path": str(data_folder.resolve() / name), "dataset_name": None}
                task |= {"dataset_kwargs": {"load_from_disk": True}}
        elif name in data_files:
            task = {
                "task": name,
                "include": str(TASKS / name / f"{name}.yaml"),
                # The cache of datasets is deleted with the scratch folder.
                "dataset_kwargs": {
                    "data_files": {"test": str(data_files[name].resolve())},
                    "cache_dir": str(scratch / "datasets"),
                },
            }
        else:
            continue
        (scratch / "tasks" / f"{name}.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    return scratch / "tasks"
