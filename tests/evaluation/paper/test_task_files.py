"""Task files and the data that they name; what of a data folder is wrong is said in a sentence."""

import shutil

import pytest
import yaml
from datasets import Dataset, load_from_disk

from hawaii.evaluation.paper.benchmarks import BENCHMARKS, DATA_SETS
from hawaii.evaluation.paper.task_files import check_data_folder, write_task_files
from hawaii.tests.evaluation.stand_ins import any_answers, save_stand_ins


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A data folder with everything."""
    return save_stand_ins(tmp_path_factory.mktemp("data"), {task: any_answers(task) for task in BENCHMARKS})


@pytest.fixture
def folder(whole, tmp_path):
    """A copy of it."""
    return shutil.copytree(whole, tmp_path / "data")


def test_a_whole_folder_is_right(whole):
    check_data_folder(list(BENCHMARKS), whole)


def test_what_is_not_asked_need_not_be_there(folder):
    shutil.rmtree(folder / "pope")
    check_data_folder(["gqa", "mme"], folder)


@pytest.mark.parametrize("name", DATA_SETS)
def test_a_data_set_that_is_not_there_is_named(folder, name):
    shutil.rmtree(folder / name)
    with pytest.raises(ValueError, match=rf"{name} holds no data: DatasetDict.save_to_disk .*docs/evaluation.md"):
        check_data_folder(list(BENCHMARKS), folder)


def test_another_split_is_named(folder):
    data = load_from_disk(folder / "pope")
    data["train"] = data.pop("test")
    data.save_to_disk(folder / "another")
    shutil.rmtree(folder / "pope")
    (folder / "another").rename(folder / "pope")
    with pytest.raises(ValueError, match="pope holds the splits train, but the benchmark is asked on the split test"):
        check_data_folder(["pope"], folder)


def test_a_data_set_without_splits_is_no_folder_of_splits(folder):
    shutil.rmtree(folder / "pope")
    Dataset.from_list([{"question": "?"}]).save_to_disk(folder / "pope")
    with pytest.raises(ValueError, match="pope holds a data set without splits"):
        check_data_folder(["pope"], folder)


@pytest.mark.parametrize("name", DATA_SETS)
def test_a_column_that_is_not_there_is_named(folder, name):
    column = BENCHMARKS[name].columns[0] if name in BENCHMARKS else "image"
    data = load_from_disk(folder / name).remove_columns(column)
    data.save_to_disk(folder / "another")
    shutil.rmtree(folder / name)
    (folder / "another").rename(folder / name)
    with pytest.raises(ValueError, match=f"{name}: the split {DATA_SETS[name][2]} lacks the columns {column}"):
        check_data_folder(list(BENCHMARKS), folder)


def test_a_folder_for_tasks_that_read_the_hub_is_refused(whole):
    with pytest.raises(ValueError, match="--data_folder holds the paper's benchmarks alone; chartqa is none"):
        check_data_folder(["gqa", "chartqa", "easy_vqa"], whole)


def test_a_task_reads_its_own_data_in_place_of_the_hubs(tmp_path):
    folder = write_task_files(["gqa", "chartqa"], {}, tmp_path / "data", tmp_path)
    assert [path.name for path in folder.iterdir()] == ["gqa.yaml"]
    task = yaml.safe_load((folder / "gqa.yaml").read_text())
    assert task["dataset_path"] == str(tmp_path / "data" / "gqa") and task["dataset_name"] is None
    assert task["dataset_kwargs"] == {"load_from_disk": True}
