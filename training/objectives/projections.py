"""Layers that map the teachers' features to the student's tokens; they are used in training only."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import nn

from ..teachers.grids import match_grid, resize_grid


# Shapes: I images, m student tokens, C channels of a teacher, matched.


@torch.no_grad()
def standardize_layer(layer: nn.Linear, outputs: torch.Tensor) -> None:
    """
    Rescales a layer so that each of its output channels has mean 0 and variance 1.

    Args:
        layer (`nn.Linear`):
            The layer.
        outputs (`torch.FloatTensor` of shape `(..., out_features)`):
            Its outputs for a sample of its inputs.
    """
    std, mean = torch.std_mean(outputs.flatten(0, -2), dim=0, correction=0)
    std = std.clamp(min=1e-5)  # in a constant channel only rounding errors would be amplified
    layer.weight.div_(std[:, None])
    layer.bias.sub_(mean).div_(std)


class Projection(nn.Sequential):
    """Two linear layers with a GELU between, on the last dimension."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__(nn.Linear(in_features, out_features), nn.GELU(), nn.Linear(out_features, out_features))

    @torch.no_grad()
    def standardize(self, features: torch.Tensor) -> None:
        """
        Rescales the last layer so that each output channel has mean 0 and variance 1 on `features`.

        The targets of a fresh projection hardly vary around a large mean. A student fits them with nearly constant
        features, which contain little information for the language model.

        Args:
            features (`torch.FloatTensor` of shape `(..., in_features)`):
                A sample of the inputs.
        """
        last = self[-1]
        assert isinstance(last, nn.Linear)
        standardize_layer(last, self(features))


def module_keys(names: Iterable[str]) -> list[str]:
    """
    Names of the teachers' modules, from index and name, so that weights of other teachers, or of the same teachers in
    another order, do not match. A module's name must not contain a dot.
    """
    return [f"{index}_{name.replace('.', '-')}" for index, name in enumerate(names)]


@torch.no_grad()
def keep_places(layer: nn.Linear, height: int, width: int) -> None:
    """
    Initialises a layer over the cells of a grid with bilinear resampling, so that each cell keeps its place. A random
    layer would mix all places of the image, permanently if it is frozen.

    Args:
        layer (`nn.Linear`):
            Maps `height * width` cells, row by row, to the tokens of a square grid.
        height, width (`int`):
            Size of the grid.
    """
    cells = torch.eye(height * width, device=layer.weight.device).view(-1, height, width, 1)
    layer.weight.copy_(resize_grid(cells, round(layer.out_features**0.5)).flatten(1).T)  # (m, h * w)
    layer.bias.zero_()


class TokenMatching(nn.ModuleDict):
    """
    Maps each teacher's features to the student's tokens and normalises them over their channels: the scales of experts
    differ by a factor of ten, and the largest would dominate.

    Args:
        keys (`list[str]`), grids (`Iterable[tuple[int, int, int]]`):
            For each teacher the name from [`module_keys`], and height, width and channels of its features.
        grid_size (`int`):
            Side of the student's grid.
        grid_matching (`str`):
            See [`match_grid`]; only `learned` has modules, one layer over the tokens of each teacher.
    """

    def __init__(self, keys: list[str], grids: Iterable[tuple[int, int, int]], grid_size: int, grid_matching: str):
        super().__init__()
        self.grid_size, self.grid_matching = grid_size, grid_matching
        for key, (height, width, _) in zip(keys, grids) if grid_matching == "learned" else ():
            self[key] = layer = nn.Linear(height * width, grid_size**2)
            keep_places(layer, height, width)

    def forward(self, teacher_features: list[torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
        """Maps `(num_images, height, width, channels)` to `(num_images, num_tokens, matched_channels)` in `dtype`."""
        matched = [match_grid(grid, self.grid_size, self.grid_matching).to(dtype) for grid in teacher_features]
        for index, layer in enumerate(self.values()):
            matched[index] = layer(matched[index].transpose(1, 2)).transpose(1, 2)
        return [F.layer_norm(features, features.shape[-1:]) for features in matched]
