"""The experts of EmojiVQA: each learns other labels of every patch, from canvases that no other split contains."""

from collections.abc import Sequence
from string import ascii_lowercase

import torch

from ..experts import Expert
from .canvases import CANVAS_SIZE, Canvas
from .concepts import Concept


# The first has a class token, and the grid and width of the recipe's student.
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
# A ViT in the form of EVA-02: positions are rotations, and the feed-forward layers have gates.
EVA_CONFIG = {
    "model_type": "dinov3_vit",
    "image_size": CANVAS_SIZE,
    "patch_size": 16,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "use_gated_mlp": True,
    "num_register_tokens": 0,
}
# The experts of the recipe `emoji_vqa_clip`, next to its CLIP. The third is for a comparison with teachers that
# contradict each other: its features say what is at the mirrored place.
CLIP_EXPERTS = (
    Expert(
        name="convnext",
        labelling="concept",
        config={
            "model_type": "convnext",
            "image_size": CANVAS_SIZE,
            "patch_size": 4,
            "num_stages": 2,
            "hidden_sizes": [48, 96],
            "depths": [2, 2],
            "layer_scale_init_value": 1.0,
        },
        num_steps=1200,
        learning_rate=4e-3,
    ),
    Expert(name="eva", labelling="subgroup", config=EVA_CONFIG, num_steps=900),
    Expert(name="mirrored", labelling="mirrored", config=EVA_CONFIG, num_steps=900),
)
# Patches along an edge of each expert's feature map, by labelling.
GRIDS = {"subgroup": 4, "concept": 8, "letter": 8, "mirrored": 4}


def labellings(canvases: Sequence[Canvas], concepts: Sequence[Concept]) -> dict[str, torch.Tensor]:
    """
    Labels each patch of the experts' feature maps by what is at its center; `concepts` are all of the data set.

    Returns:
        The labels `"subgroup"`, `"concept"`, `"letter"` and `"mirrored"`, a `torch.LongTensor` of shape
        `(num_canvases, num_patches)` each. 0 is the ground. `"letter"` has one label for all drawings; the others
        label writing as ground. `"mirrored"` is the subgroup at the mirrored place, right instead of left.
    """
    subgroups = list(dict.fromkeys(concept.subgroup for concept in concepts))
    drawing_labels = {
        "subgroup": {concept.name: subgroups.index(concept.subgroup) + 1 for concept in concepts},
        "concept": {concept.name: index + 1 for index, concept in enumerate(concepts)},
        "letter": {concept.name: 1 for concept in concepts},
    }
    drawing_labels["mirrored"] = drawing_labels["subgroup"]

    def label(canvas: Canvas, labelling: str, x: float, y: float) -> int:
        for placement in canvas.drawings:
            if placement.covers(x, y):
                return drawing_labels[labelling][placement.name]
        writing = canvas.writing
        if labelling == "letter" and writing is not None and writing.placement.covers(x, y):
            return 2 + ascii_lowercase.index(writing.letter_at(x))
        return 0

    labels = {}
    for labelling, grid in GRIDS.items():
        centers = [(index + 0.5) * CANVAS_SIZE / grid for index in range(grid)]
        columns = centers[::-1] if labelling == "mirrored" else centers
        rows = [[label(canvas, labelling, x, y) for y in centers for x in columns] for canvas in canvases]
        labels[labelling] = torch.tensor(rows)
    return labels
