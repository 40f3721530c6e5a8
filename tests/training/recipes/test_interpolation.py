"""Interpolations that expand exponentially are one sentence, and ordinary ones are not counted as such."""

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
}


@pytest.mark.parametrize("content", BOMBS.values(), ids=BOMBS)
def test_an_exponential_expansion_is_an_error(content):
    with pytest.raises(UserError, match=r"recipe\.yaml would have more than"):
        check_interpolations(Path("recipe.yaml"), content)


@pytest.mark.parametrize(
    ("bomb", "problem"),
    [
        (BOMBS["texts"], "would have more than 1,000,000 characters"),
        (
            chain(lambda name: f"${{{name}}}" * 4, levels=2000),
            "has a value that cannot be resolved: maximum recursion",
        ),
    ],
)
def test_a_recipe_that_expands_exponentially_is_refused(tmp_path, bomb, problem):
    content = {"output_dir": "${a0}", **bomb, "stages": {"only": {}}}
    OmegaConf.save(OmegaConf.create(content), tmp_path / "recipe.yaml")
    with pytest.raises(UserError, match=f"recipe.yaml {problem}"):
        read_recipe(tmp_path / "recipe.yaml")


@pytest.mark.parametrize(
    "content", [{"a": "${a}"}, {"a": "${b}", "b": "${a}"}, {"a": "${none}"}, {"a": "${oc.env:HOME}"}, {"a": "$ {b}"}]
)
def test_what_omegaconf_reports_or_resolves_is_left_to_it(content):
    check_interpolations(Path("recipe.yaml"), content)


@pytest.mark.parametrize("name", ["easy_vqa", "emoji_vqa", "hawaii_vicuna_7b"])
def test_the_built_in_recipes_are_far_below_the_bound(name):
    content = OmegaConf.to_container(OmegaConf.load(find_recipe(name)))
    check_interpolations(Path("recipe.yaml"), {"copies": [content] * 20})
