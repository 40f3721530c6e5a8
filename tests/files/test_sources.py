"""A name that no library could load is an error that names its role in the recipe."""

import pytest

from hawaii.files.sources import check_source
from hawaii.files.user_error import UserError


@pytest.mark.parametrize("name", ["gpt2", "openai/clip-vit-large-patch14-336"])
def test_a_hub_id_may_be_anything(name):
    check_source("teacher", name)


@pytest.mark.parametrize("name", ["runs/easy_vqa/experts/vit", "/there/is/none", "./none", "../none"])
def test_a_missing_folder_is_an_error(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a demo may have created the first in the current directory
    with pytest.raises(UserError, match=f"There is no teacher {name}: name a folder or a hub id"):
        check_source("teacher", name)


def test_a_folder_without_the_file_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"The tokenizer .* is a folder without tokenizer_config\.json"):
        check_source("tokenizer", str(tmp_path), "tokenizer_config.json")
    (tmp_path / "tokenizer_config.json").write_text("{}")
    check_source("tokenizer", str(tmp_path), "tokenizer_config.json")
