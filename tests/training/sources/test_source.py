"""A wrong source in a recipe is an error of one sentence, before data are read."""

import datasets
import pytest

from hawaii.files.user_error import UserError
from hawaii.tests.tiny.training import write_recipe
from hawaii.training.recipes.arguments import DataArguments
from hawaii.training.recipes.recipe import read_recipe
from hawaii.training.sources.source import Source


JSON = {"path": "a.json", "image_folder": "images"}
STREAM = {"path": "shards", "streaming": True}


@pytest.mark.parametrize("weight", [0.0, -1.0, float("inf"), float("nan")])
def test_a_weight_must_be_positive(weight):
    with pytest.raises(UserError, match=f"weight is {weight}; it must be above 0"):
        Source("a.json", "images", weight=weight)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"data": []}, "data is an empty list; name one or more sources, or a data_path"),
        ({"data": [JSON], "data_path": "b.json"}, r"data_path is 'b\.json', and data names sources, too"),
        ({"data": ["a.json"]}, r"data\[0\] is 'a\.json'; it must be a mapping, as in"),
        ({"data": [{"weight": 1}]}, r"data\[0\] \(without path\): path is missing"),
        ({"data": [JSON, {**JSON, "wieght": 1}]}, r"data\[1\] \(a\.json\).*wieght.*weight"),
        ({"data": [{**JSON, "weight": "much"}]}, r"data\[0\] \(a\.json\).*weight.*much"),
        ({"data": [{**JSON, "weight": 0}]}, r"data\[0\] \(a\.json\): weight is 0; it must be above 0"),
        ({"data": [{**JSON, "weight": 1}, JSON]}, "only some sources have a weight; give every source one, or none"),
        ({"data": [STREAM, JSON]}, "Streamed sources have no epoch, so they need weights"),
        ({"data": [{**JSON, "streaming": True}]}, r"data\[0\] \(a\.json\): streaming is true, but only data sets are"),
        ({"data": [{**JSON, "split": "test"}]}, r"data\[0\] \(a\.json\): config and split belong to data sets"),
        ({"data": [{"path": "a.json"}]}, r"data\[0\] \(a\.json\): there is no image_folder"),
    ],
)
def test_what_is_wrong_with_a_source_names_it(given, problem):
    with pytest.raises(UserError, match=problem):
        DataArguments(**given)


def test_a_source_without_an_image_folder_has_that_of_the_stage():
    sources = DataArguments(image_folder="all", data=[{"path": "a.json"}, {**JSON, "weight": None}]).sources
    assert [source.image_folder for source in sources] == ["all", "images"]


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["max_steps=-1", "num_train_epochs=2"], "a streamed source has no end.*: add max_steps"),
        (["train_sampling_strategy=group_by_length"], "train_sampling_strategy is group_by_length, but samples of a"),
    ],
)
def test_a_streamed_source_needs_a_number_of_steps_and_its_own_order(tmp_path, teacher_folders, overrides, problem):
    recipe = write_recipe(tmp_path, teacher_folders, data_path=None, data=[STREAM])
    assert read_recipe(recipe, use_cpu=True).stages["pretrain"].data.is_streaming
    with pytest.raises(UserError, match=f"stage pretrain: {problem}"):
        read_recipe(recipe, overrides, use_cpu=True)


@pytest.mark.parametrize(
    "path", ["mvp-lab/LLaVA-OneVision-1.5-Instruct-Data", "lab/data-v1.5", "set", "set.v2", "a.tar"]
)
def test_what_no_reader_reads_is_a_data_set(path):
    assert Source(path, streaming=True).is_dataset and Source(path, config="x", split="test").is_dataset


def test_a_file_of_json_is_none_whether_it_exists_or_not(tmp_path):
    (tmp_path / "a.json").touch()
    assert not Source(str(tmp_path / "a.json"), "images").is_dataset
    assert not Source(str(tmp_path / "b.jsonl"), "images").is_dataset


@pytest.mark.parametrize("name", ["data", "data.csv", "data-v1.5"])
@pytest.mark.parametrize(
    "kwargs", [{}, {"streaming": True, "weight": 1}, {"split": "test"}, {"image_folder": "images"}]
)
def test_a_file_of_another_format_is_one_error(tmp_path, name, kwargs):
    path = tmp_path / name
    path.touch()
    with pytest.raises(UserError, match=rf"data\[0\] .*: {path} has no supported data format: LLaVA's JSON .*parquet"):
        DataArguments(data=[{"path": str(path), **kwargs}])
    path.unlink()
    path.mkdir()
    assert Source(str(path)).is_dataset


def test_an_id_with_a_dot_is_looked_up_on_the_hub(monkeypatch):
    def load_dataset_builder(path, **kwargs):
        raise ConnectionError(f"asked for {path}")

    monkeypatch.setattr(datasets, "load_dataset_builder", load_dataset_builder)
    with pytest.raises(UserError, match=r"The data set lab/data-v1\.5 cannot be loaded: asked for lab/data-v1\.5"):
        Source("lab/data-v1.5").read()
