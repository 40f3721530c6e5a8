"""Interpolations that expand exponentially are an error of one sentence, and ordinary ones are accepted."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from hawaii.files.user_error import UserError
from hawaii.training.recipes.built_in import find_recipe
from hawaii.training.recipes.interpolation import check_interpolations
from hawaii.training.recipes.recipe import read_recipe


def chain(make, levels=30):
    """Values that each name the next one several times, as `make` writes it."""
    return {f"a{level}": make(f"a{level + 1}") for level in range(levels)} | {f"a{levels}": "x" * 10}


BOMBS = {
    "texts": chain(lambda name: f"${{{name}}}" * 4),
    "mappings": chain(lambda name: {"p": f"${{{name}}}", "q": f"${{{name}}}"}),
    "lists": chain(lambda name: [f"${{{name}}}"] * 3),
    "relative": {"inner": chain(lambda name: f"${{.{name}}}${{..inner.{name}}}")},
    "elements": chain(lambda name: [f"${{{name}[0]}}${{{name}[0]}}"]),
    "numbers": {"l": [["x"] * 10, *([f"${{l.{level}}}"] * 10 for level in range(8))]},
    "one name": chain(lambda name: {"x": [f"${{{name}.x}}"] * 10}),
    "nested": {"n": "a0", **chain(lambda name: f"${{{name}}}" * 4), "b": "${${n}}" * 4},
    "other letters": {"é1": "${a}" * 4, "a": "${b}" * 4, "b": "x"},
}


@pytest.mark.parametrize("content", BOMBS.values(), ids=BOMBS)
def test_an_exponential_expansion_is_an_error(content):
    with pytest.raises(UserError, match=r"recipe\.yaml: \$\{.*\} is not a shared key of the recipe whose value is a"):
        check_interpolations(Path("recipe.yaml"), content)


def test_a_long_value_that_is_named_often_is_an_error():
    with pytest.raises(UserError, match=r"recipe\.yaml would have more than 1,000,000 characters"):
        check_interpolations(Path("recipe.yaml"), {"a": "x" * 10_000, "b": ["${a}"] * 200})


@pytest.mark.parametrize("levels", [30, 2000])
def test_a_recipe_that_expands_exponentially_is_refused(tmp_path, levels):
    bomb = chain(lambda name: f"${{{name}}}" * 4, levels)
    OmegaConf.save(OmegaConf.create({"output_dir": "${a0}", **bomb, "stages": {"only": {}}}), tmp_path / "recipe.yaml")
    with pytest.raises(UserError, match=r"recipe.yaml: \$\{a0\} is not a shared key"):
        read_recipe(tmp_path / "recipe.yaml")


def test_a_recipe_that_is_nested_too_deeply_is_refused(tmp_path):
    (tmp_path / "recipe.yaml").write_text(f"stages: {{one: {{}}}}\na: {'[' * 3000}{']' * 3000}\n")
    with pytest.raises(UserError, match="recipe.yaml is not valid YAML"):
        read_recipe(tmp_path / "recipe.yaml")


@pytest.mark.parametrize(
    "content", [{"a": "${oc.env:HOME}"}, {"a": "$ {b}"}, {"a": r"\${b}"}, {"a": 3, "b": ["x/${a}", {"c": "${a}"}]}]
)
def test_other_texts_are_left_to_omegaconf(content):
    check_interpolations(Path("recipe.yaml"), content)


@pytest.mark.parametrize("name", ["easy_vqa", "emoji_vqa", "hawaii_vicuna_7b"])
def test_the_built_in_recipes_are_far_below_the_bound(name):
    content = OmegaConf.to_container(OmegaConf.load(find_recipe(name)))
    check_interpolations(Path("recipe.yaml"), {**content, "copies": [content] * 20})
