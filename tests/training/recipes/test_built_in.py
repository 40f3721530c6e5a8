"""Built-in recipes are found by name from any folder and listed with a description."""

import pytest

from hawaii.files.user_error import UserError
from hawaii.training.recipes.built_in import BUILT_IN, describe_recipes, find_recipe


def test_a_built_in_recipe_is_found_by_name_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "easy_vqa").mkdir()  # a folder is not a recipe
    assert find_recipe("easy_vqa") == BUILT_IN["easy_vqa"]
    assert find_recipe("hawaii_vicuna_7b").is_file()


def test_a_file_takes_precedence(tmp_path, monkeypatch):
    (tmp_path / "easy_vqa").touch()
    monkeypatch.chdir(tmp_path)
    assert find_recipe("easy_vqa").resolve() == tmp_path / "easy_vqa"


@pytest.mark.parametrize("name", ["easy_vqq", "training/recipes/easy_vqq.yaml"])
def test_the_error_for_an_unknown_recipe_suggests_the_closest_one(name):
    with pytest.raises(
        UserError, match=rf"There is no recipe {name}: .*hawaii_vicuna_7b, .*\. Did you mean easy_vqa\?"
    ):
        find_recipe(name)


def test_every_recipe_is_listed_with_a_description():
    lines = describe_recipes().splitlines()
    assert len(lines) == 2 + len(BUILT_IN)
    for line, name in zip(lines[2:], BUILT_IN):
        found, sentence = (cell.strip() for cell in line.strip("|").split("|"))
        assert found == name and sentence.endswith(".") and not sentence.startswith("#")
