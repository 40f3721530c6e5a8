"""Between the teachers' features and the student's: what only training needs, and no checkpoint holds."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import nn

from ..teachers.grids import match_grid, resize_grid


# Shapes: I images, m student tokens, C channels of a teacher, matched.


@torch.no_grad()
def standardize_layer(layer: nn.Linear, outputs: torch.Tensor) -> None:
    """
    Changes a layer so that each channel that it gives has mean zero and variance one.

    Args:
        layer (`nn.Linear`):
            The layer.
        outputs (`torch.FloatTensor` of shape `(..., out_features)`):
            What it gives so far, for some of what it will be given.
    """
    std, mean = torch.std_mean(outputs.flatten(0, -2), dim=0, correction=0)
    std = std.clamp(min=1e-5)  # a channel that never varies has nothing but rounding to be made large
    layer.weight.div_(std[:, None])
    layer.bias.sub_(mean).div_(std)


class Projection(nn.Sequential):
    """Two linear layers with a GELU between, on the last dimension."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__(nn.Linear(in_features, out_features), nn.GELU(), nn.Linear(out_features, out_features))

    @torch.no_grad()
    def standardize(self, features: torch.Tensor) -> None:
        """
        Changes the last layer so that each channel that it makes of `features` has mean zero and variance one.

        A fresh projection gives targets that hardly vary around a large mean. A student meets those by hardly varying
        itself, which teaches nothing and leaves little for the language model to see.

        Args:
            features (`torch.FloatTensor` of shape `(..., in_features)`):
                Some of what will be projected.
        """
        last = self[-1]
        assert isinstance(last, nn.Linear)
        standardize_layer(last, self(features))


def module_keys(names: Iterable[str]) -> list[str]:
    """
    Names of the teachers' modules: by place and name, so that the weights of other teachers, or of the same in another
    order, are not taken for these. A module's name has no dot.
    """
    return [f"{index}_{name.replace('.', '-')}" for index, name in enumerate(names)]


@torch.no_grad()
def keep_places(layer: nn.Linear, height: int, width: int) -> None:
    """
    Lets a layer over the cells of a grid begin as the one that brings each to its own place among the tokens. A fresh
    layer mixes all places of the image, and would stay so where it does not learn.

    Args:
        layer (`nn.Linear`):
            From `height * width` cells, row by row, to the tokens of a square grid.
        height, width (`int`):
            Of the grid.
    """
    cells = torch.eye(height * width, device=layer.weight.device).view(-1, height, width, 1)
    layer.weight.copy_(resize_grid(cells, round(layer.out_features**0.5)).flatten(1).T)  # (m, h * w)
    layer.bias.zero_()


def make_token_projections(keys: list[str], grids: Iterable[tuple[int, int, int]], num_tokens: int) -> nn.ModuleDict:
    """For `grid_matching: learned`, each teacher's layer over its tokens."""
    layers = nn.ModuleDict()
    for key, (height, width, _) in zip(keys, grids):
        layers[key] = layer = nn.Linear(height * width, num_tokens)
        keep_places(layer, height, width)
    return layers


def match_teachers(
    teacher_features: list[torch.Tensor],
    grid_size: int,
    grid_matching: str,
    token_projections: Iterable[nn.Module],
    dtype: torch.dtype,
) -> list[torch.Tensor]:
    """
    Each teacher's features as the student's tokens, normalised over their channels: experts differ in scale by a
    factor of ten, and the loudest alone would be heard.

    Args:
        teacher_features (`list[torch.FloatTensor]`):
            Of each teacher, `(num_images, height, width, channels)`.
        grid_size (`int`):
            Side of the student's grid.
        grid_matching (`str`):
            See [`match_grid`].
        token_projections (`Iterable[nn.Module]`):
            Those of `learned`, one for each teacher; otherwise none.
        dtype (`torch.dtype`):
            What comes back.

    Returns:
        `list[torch.FloatTensor]`: of each teacher `(num_images, num_tokens, matched_channels)`.
    """
    matched = [match_grid(grid, grid_size, grid_matching).to(dtype) for grid in teacher_features]
    for index, projection in enumerate(token_projections):
        matched[index] = projection(matched[index].transpose(1, 2)).transpose(1, 2)
    return [F.layer_norm(features, features.shape[-1:]) for features in matched]
