"""docs/tiles.md: its table is what the package computes, and its recipe is that of hawaii_next_vicuna_7b."""

import re

import torch
import yaml

from hawaii.configuration.tiles_hawaii import find_tile_grids
from hawaii.tests.documents import blocks, read
from hawaii.training.recipes.built_in import BUILT_IN


DOCUMENT = read("docs/tiles.md")
PINPOINTS = yaml.safe_load(re.search(r"LLaVA-NeXT's are `(.*?)`", DOCUMENT)[1])


def test_the_table_has_the_grids_and_tokens_of_each_picture():
    rows = re.findall(r"^\| (\d+) x (\d+) \| (\d) x (\d) \| (\d) \| ([\d,]+) \|$", DOCUMENT, flags=re.MULTILINE)
    assert len(rows) == 6
    sizes = torch.tensor([[int(height), int(width)] for width, height, *_ in rows])
    grids = find_tile_grids(sizes, PINPOINTS, 336, 24)
    shown = [[int(number.replace(",", "")) for number in row[2:]] for row in rows]
    columns = (grids.rows, grids.columns, grids.num_tiles, grids.num_tokens)
    assert shown == torch.stack(columns, dim=1).tolist()


def test_its_recipe_is_part_of_the_built_in_one():
    (block,) = blocks(DOCUMENT, "yaml")
    shown = yaml.safe_load(block)["stages"]["finetune"]
    recipe = yaml.safe_load(BUILT_IN["hawaii_next_vicuna_7b"].read_text())["stages"]["finetune"]
    assert shown.items() <= recipe.items() and shown["image_grid_pinpoints"] == PINPOINTS
