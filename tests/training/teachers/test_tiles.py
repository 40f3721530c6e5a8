"""The features of a teacher belong to the same place of a picture as the student's, in every tile."""

import pytest
import torch
from PIL import Image
from transformers import ConvNextConfig, ConvNextModel

from hawaii.configuration.tiles_hawaii import find_features, find_tile_grids
from hawaii.processing.image_processing_hawaii import HawaiiImageProcessor
from hawaii.tests.tiny.training import save_image_processor
from hawaii.training.data.reader import teacher_image
from hawaii.training.teachers.config import TeacherConfig
from hawaii.training.teachers.grids import match_grid
from hawaii.training.teachers.loading import load_teachers


PINPOINTS = [[16, 32], [32, 16], [32, 32], [16, 48]]
SIDE = 4  # patches of a tile along a side


@pytest.fixture(scope="module")
def convnext(tmp_path_factory):
    """A teacher whose 8 x 8 features each depend on one cell of the image: its blocks add almost nothing."""
    folder = tmp_path_factory.mktemp("convnext")
    config = ConvNextConfig(
        hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, patch_size=2, image_size=32, layer_scale_init_value=1e-9
    )
    torch.manual_seed(0)
    ConvNextModel(config).save_pretrained(folder)
    save_image_processor(folder, 32)
    return load_teachers([TeacherConfig.parse(str(folder))])[0]


def in_order_of_tokens(features: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Values of the cells of a picture without the whole picture and newlines, from those of its squares `(S, m)`."""
    grids = find_tile_grids(torch.tensor([[height, width]]), PINPOINTS, 16, SIDE)
    index, is_newline = find_features(grids, torch.arange(int(grids.num_tokens)))
    return features.flatten()[index[SIDE**2 :][~is_newline[SIDE**2 :]]]


@pytest.mark.parametrize(("width", "height"), [(64, 32), (32, 64), (64, 64), (96, 32), (64, 48), (80, 33)])
def test_a_cell_answers_to_the_same_place_across_the_borders_of_tiles(convnext, width, height):
    """A bright square moves over the picture: teacher and student see it in the same cell."""
    image_processor = HawaiiImageProcessor(
        size={"height": 16, "width": 16}, crop_size={"height": 16, "width": 16}, image_grid_pinpoints=PINPOINTS
    )

    def see(image):
        """Brightness of the student's patches and features of the teacher on the same grid, for each square."""
        pixels = image_processor(image, return_tensors="pt")["pixel_values"].mean(dim=1)  # (S, 16, 16)
        patches = torch.nn.functional.avg_pool2d(pixels[:, None], 16 // SIDE).flatten(1)  # (S, m)
        squares = image_processor.square_images(image, 32, Image.Resampling.BICUBIC)
        features = convnext(torch.stack([teacher_image(square, 32) for square in squares]))
        return patches, match_grid(features, SIDE, "interpolate")

    dark = Image.new("RGB", (width, height))
    dark_patches, dark_features = see(dark)
    places = []
    for step in range(4, max(width, height) - 4, 8):
        image = dark.copy()
        x, y = (step, height // 2 - 4) if width >= height else (width // 2 - 4, step)
        image.paste("white", (x - 4, y - 4, x + 4, y + 4))
        patches, features = see(image)
        seen = in_order_of_tokens(patches - dark_patches, height, width)
        answer = in_order_of_tokens((features - dark_features).norm(dim=-1), height, width)
        columns = seen.numel() // find_tile_grids(torch.tensor([[height, width]]), PINPOINTS, 16, SIDE).height.item()
        places.append((divmod(int(seen.argmax()), columns), divmod(int(answer.argmax()), columns)))
    assert [seen for seen, _ in places] == [answer for _, answer in places]
    assert len({seen for seen, _ in places}) == len(places)
