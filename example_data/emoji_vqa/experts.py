"""The experts of EmojiVQA: each learns to tell something else of every patch of canvases of its own."""

from collections.abc import Sequence
from string import ascii_lowercase

import torch

from ..experts import Expert
from .canvases import CANVAS_SIZE, Canvas
from .concepts import Concept


# The first has a class token and the grid and width of the recipe's student.
EXPERTS = (
    Expert(
        name="vit",
        labelling="subgroup",
        config={
            "model_type": "vit",
            "image_size": CANVAS_SIZE,
            "patch_size": 16,
            "hidden_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "intermediate_size": 256,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
        num_steps=900,
    ),
    Expert(
        name="resnet",
        labelling="concept",
        config={
            "model_type": "resnet",
            "embedding_size": 24,
            "hidden_sizes": [48, 128],
            "depths": [1, 2],
            "layer_type": "basic",
        },
        num_steps=550,
    ),
    Expert(
        name="regnet",
        labelling="letter",
        config={
            "model_type": "regnet",
            "embedding_size": 24,
            "hidden_sizes": [48, 96],
            "depths": [1, 2],
            "groups_width": 12,
            "layer_type": "y",
        },
        num_steps=650,
    ),
)
# Patches along an edge of the map of each expert, by what it learns.
GRIDS = {"subgroup": 4, "concept": 8, "letter": 8}


def _centers(grid: int) -> list[tuple[float, float]]:
    """The centers of a canvas's patches, across and down, row by row."""
    edge = CANVAS_SIZE / grid
    return [((column + 0.5) * edge, (row + 0.5) * edge) for row in range(grid) for column in range(grid)]


def labellings(canvases: Sequence[Canvas], concepts: Sequence[Concept]) -> dict[str, torch.Tensor]:
    """
    What the experts learn to tell of each patch, by what is at its center.

    Args:
        canvases (`Sequence[Canvas]`):
            The images.
        concepts (`Sequence[Concept]`):
            All that are drawn anywhere.

    Returns:
        The labels `"subgroup"`, `"concept"` and `"letter"`, a `torch.LongTensor` of shape
        `(num_canvases, num_patches)` each. 0 is the ground. Of drawings, `"letter"` tells only that they are there;
        the others take writing for ground.
    """
    subgroups = list(dict.fromkeys(concept.subgroup for concept in concepts))
    of_drawing = {
        "subgroup": {concept.name: subgroups.index(concept.subgroup) + 1 for concept in concepts},
        "concept": {concept.name: index + 1 for index, concept in enumerate(concepts)},
        "letter": {concept.name: 1 for concept in concepts},
    }

    def label(canvas: Canvas, labelling: str, across: float, down: float) -> int:
        for placement in canvas.drawings:
            if placement.covers(across, down):
                return of_drawing[labelling][placement.name]
        writing = canvas.writing
        if labelling == "letter" and writing is not None and writing.placement.covers(across, down):
            return 2 + ascii_lowercase.index(writing.letter_at(across))
        return 0

    return {
        labelling: torch.tensor([[label(canvas, labelling, *at) for at in _centers(grid)] for canvas in canvases])
        for labelling, grid in GRIDS.items()
    }
