"""Tests of task files and the checks of their data."""

import shutil

import pytest
import yaml
from datasets import Dataset, load_from_disk

from hawaii.evaluation.paper.benchmarks import BENCHMARKS, DATA_SETS
from hawaii.evaluation.paper.task_files import check_data_folder, write_task_files
from hawaii.tests.evaluation.stand_ins import any_answers, save_stand_ins


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """A data folder with everything."""
    return save_stand_ins(tmp_path_factory.mktemp("data"), {task: any_answers(task) for task in BENCHMARKS})


@pytest.fixture
def folder(complete, tmp_path):
    """A copy of it."""
    return shutil.copytree(complete, tmp_path / "data")


def test_a_complete_folder_passes(complete):
    check_data_folder(list(BENCHMARKS), complete)


def test_benchmarks_that_are_not_requested_may_be_missing(folder):
    shutil.rmtree(folder / "pope")
    check_data_folder(["gqa", "mme"], folder)


@pytest.mark.parametrize("name", DATA_SETS)
def test_the_error_names_a_missing_data_set(folder, name):
    shutil.rmtree(folder / name)
    with pytest.raises(
        ValueError, match=rf"{name} has no data; write it with DatasetDict.save_to_disk .*docs/evaluation.md"
    ):
        check_data_folder(list(BENCHMARKS), folder)


def test_the_error_names_a_wrong_split(folder):
    data = load_from_disk(folder / "pope")
    data["train"] = data.pop("test")
    data.save_to_disk(folder / "another")
    shutil.rmtree(folder / "pope")
    (folder / "another").rename(folder / "pope")
    with pytest.raises(ValueError, match="pope has the splits train, but the benchmark uses the split test"):
        check_data_folder(["pope"], folder)


def test_a_data_set_without_splits_is_refused(folder):
    shutil.rmtree(folder / "pope")
    Dataset.from_list([{"question": "?"}]).save_to_disk(folder / "pope")
    with pytest.raises(ValueError, match="pope has a data set without splits"):
        check_data_folder(["pope"], folder)


@pytest.mark.parametrize("name", DATA_SETS)
def test_the_error_names_a_missing_column(folder, name):
    column = BENCHMARKS[name].columns[0] if name in BENCHMARKS else "image"
    data = load_from_disk(folder / name).remove_columns(column)
    data.save_to_disk(folder / "another")
    shutil.rmtree(folder / name)
    (folder / "another").rename(folder / name)
    with pytest.raises(ValueError, match=f"The split {DATA_SETS[name][2]} of .*{name} has no columns {column}"):
        check_data_folder(list(BENCHMARKS), folder)


def test_a_data_folder_is_refused_for_other_tasks(complete):
    with pytest.raises(
        ValueError, match="--data_folder is only for the paper's benchmarks, not for chartqa; remove one"
    ):
        check_data_folder(["gqa", "chartqa", "easy_vqa"], complete)


def test_a_task_reads_the_data_folder_instead_of_the_hub(tmp_path):
    folder = write_task_files(["gqa", "chartqa"], {}, tmp_path / "data", tmp_path)
    assert [path.name for path in folder.iterdir()] == ["gqa.yaml"]
    task = yaml.safe_load((folder / "gqa.yaml").read_text())
    assert task["dataset_path"] == str(tmp_path / "data" / "gqa") and task["dataset_name"] is None
    assert task["dataset_kwargs"] == {"load_from_disk": True}
