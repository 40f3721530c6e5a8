"""With tiles, the map of adapters covers the whole picture, cell by cell."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from hawaii.hub_cards.space.hawaii_space.answerer import Answerer
from hawaii.hub_cards.space.hawaii_space.drawing import draw_importance
from hawaii.hub_cards.space.hawaii_space.routing_map import map_routing
from hawaii.hub_cards.space.hawaii_space.tiles import assemble_picture
from hawaii.processing.images_hawaii import to_planes
from hawaii.tests.tiny.models import save_tiled_folder
from hawaii.tests.tiny.tiled_models import CELLS, SIZES, make_tiled_model, make_tiled_processor, mark_cell
from hawaii.tests.tiny.training import make_image


ROOT = Path(__file__).parents[3]
TRANSFORMERS_4 = Path(os.environ.get("HAWAII_TRANSFORMERS4_PYTHON", ROOT / ".venv-transformers4" / "bin" / "python"))
NAMES = {"teacher": ["a", "b", "c"], "general": ["adapter 0", "adapter 1", "adapter 2"]}
# A Space does not have the package.
MAP = """
import json, sys
sys.modules["hawaii"] = None
from PIL import Image
from hawaii_space.loading import load_model
from hawaii_space.routing_map import map_routing
model, processor, _ = load_model(sys.argv[1])
routing = map_routing(model, processor, Image.open(sys.argv[2]), json.loads(sys.argv[3]))
print(json.dumps([routing.picture.size, routing.banks["teacher"].chosen.tolist()]))
"""


@pytest.fixture(scope="module")
def hawaii():
    torch.manual_seed(0)
    return make_tiled_model(), make_tiled_processor()


def without_attention(model):
    """Makes what happens at a patch depend on this patch alone."""
    for layer in model.model.vision_tower.layers:
        for name, parameter in layer.attention.named_parameters():
            if not name.startswith("qkv"):
                torch.nn.init.zeros_(parameter)
    return model


@pytest.mark.parametrize("kind", SIZES)
def test_a_picture_in_the_size_of_its_grid_is_assembled_without_change(hawaii, kind):
    model, processor = hawaii
    image = make_image(3, *SIZES[kind])
    picture = map_routing(model, processor, image, NAMES).picture
    rows, columns = CELLS[kind]
    assert picture.size == (4 * columns, 4 * rows) == image.size
    assert picture.tobytes() == image.tobytes()


@pytest.mark.parametrize("size", [(20, 13), (13, 20), (200, 30), (31, 32), (3, 3), (1000, 1)])
def test_the_picture_has_a_cell_for_each_patch_of_the_map(hawaii, size):
    model, processor = hawaii
    routing = map_routing(model, processor, make_image(3, *size), NAMES)
    columns, rows = (side // 4 for side in routing.picture.size)
    assert routing.picture.size == (4 * columns, 4 * rows)
    for bank in routing.banks.values():
        assert bank.chosen.shape == bank.probabilities.shape == (2, rows * columns)


@pytest.mark.parametrize("kind", SIZES)
def test_only_the_marked_cell_is_routed_in_another_way(kind):
    torch.manual_seed(0)
    model, processor = without_attention(make_tiled_model()), make_tiled_processor()
    rows, columns = CELLS[kind]
    black = map_routing(model, processor, Image.new("RGB", SIZES[kind]), NAMES)
    for row, column in [(0, 0), (rows - 1, columns - 1), (1, 3), (1, columns // 2)]:  # beside a tile's border, too
        marked = map_routing(model, processor, mark_cell(SIZES[kind], row, column), NAMES)
        assert marked.picture.getpixel((4 * column + 1, 4 * row + 1)) == (255, 255, 255)
        changes = (marked.banks["teacher"].probabilities - black.banks["teacher"].probabilities).abs().amax(dim=0)
        assert (changes > 1e-6).nonzero().tolist() == [[row * columns + column]]


def test_pixels_that_fill_no_patch_are_left_out():
    """Tiles of 16 pixels have 3 x 3 patches of 5."""
    processor = make_tiled_processor().image_processor
    image = make_image(3, 32, 16)
    squares = torch.stack([to_planes(square) for square in processor.square_images(image)])
    picture = assemble_picture(processor, squares, torch.tensor([[16, 32]]), 5)
    expected = Image.new("RGB", (30, 15))
    for number in range(2):
        expected.paste(image.crop((16 * number, 0, 16 * number + 15, 15)), (15 * number, 0))
    assert picture.tobytes() == expected.tobytes()


@pytest.mark.parametrize("python", [sys.executable, TRANSFORMERS_4], ids=["transformers 5", "transformers 4"])
def test_a_space_maps_a_tiled_model_with_the_code_that_it_loads(tmp_path, python):
    torch.manual_seed(0)
    folder = save_tiled_folder(tmp_path / "hub")
    make_image(3, 41, 20).save(tmp_path / "wide.png")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HF_"))}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [python, "-c", MAP, folder, tmp_path / "wide.png", json.dumps(NAMES)]
    finished = subprocess.run(
        command, cwd=ROOT / "hub_cards/space", env=environment, capture_output=True, text=True, timeout=600
    )
    assert finished.returncode == 0, finished.stderr[-4000:]
    torch.manual_seed(0)
    expected = map_routing(make_tiled_model(), make_tiled_processor(), Image.open(tmp_path / "wide.png"), NAMES)
    size, chosen = json.loads(finished.stdout.splitlines()[-1])
    assert tuple(size) == expected.picture.size == (32, 16)  # in the middle of three tiles
    assert chosen == expected.banks["teacher"].chosen.tolist()


def test_a_page_maps_and_answers_about_a_picture_in_tiles(hawaii, tmp_path):
    answerer = Answerer(*hawaii, {})
    make_image(3, 40, 20).save(tmp_path / "wide.png")
    path, routing, error = answerer.look({"path": str(tmp_path / "wide.png")})
    assert error == ""
    html = answerer.draw_routing(routing, "general", 1, False)
    assert f'viewBox="0 0 {routing.picture.width} {routing.picture.height}"' in html
    assert html.count("probability") == routing.picture.width * routing.picture.height // 16
    *_, (question, history, error) = answerer.answer("what color is the shape ?", [], path)
    assert (question, error, len(history)) == ("", "", 2)


def test_the_importance_covers_a_picture_that_is_not_square():
    html = draw_importance(Image.new("RGB", (12, 4)), {"vit": [[1.0, 1.0, 4.0]]})
    assert 'viewBox="0 0 12 4"' in html
    assert '<rect x="8" y="0" width="4" height="4" fill-opacity="0.000"><title>2.00 × the mean' in html
