"""A name that can be loaded by no library is an error in the recipe's words."""

import pytest

from hawaii.files.sources import check_source


@pytest.mark.parametrize("name", ["gpt2", "openai/clip-vit-large-patch14-336"])
def test_a_hub_id_may_be_anything(name):
    check_source("teacher", name)


@pytest.mark.parametrize("name", ["runs/easy_vqa/experts/vit", "/there/is/none", "./none", "../none"])
def test_a_folder_that_is_not_there_is_an_error(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where the tests run, a demo may have left the first
    with pytest.raises(ValueError, match=f"There is no teacher {name}: name a folder or a hub id"):
        check_source("teacher", name)


def test_a_folder_of_something_else_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"The tokenizer .* is a folder without tokenizer_config\.json"):
        check_source("tokenizer", str(tmp_path), "tokenizer_config.json")
    (tmp_path / "tokenizer_config.json").write_text("{}")
    check_source("tokenizer", str(tmp_path), "tokenizer_config.json")
