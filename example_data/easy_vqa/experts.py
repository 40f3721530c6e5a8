"""The experts of easy-VQA: each learns other labels of the training images."""

from collections.abc import Sequence

import torch

from ..experts import Expert
from .questions import COLORS, SHAPES, Description


EXPERTS = (
    Expert(
        name="resnet",
        labelling="shape",
        config={
            "model_type": "resnet",
            "embedding_size": 24,
            "hidden_sizes": [48, 96],
            "depths": [1, 2],
            "layer_type": "basic",
        },
        num_steps=210,
    ),
    Expert(
        name="vit",
        labelling="color",
        config={
            "model_type": "vit",
            "image_size": 64,
            "patch_size": 8,
            "hidden_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "intermediate_size": 192,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
        num_steps=240,
    ),
    Expert(
        name="poolformer",
        labelling="color and shape",
        config={
            "model_type": "poolformer",
            "num_encoder_blocks": 2,
            "hidden_sizes": [32, 96],
            "depths": [1, 2],
            "patch_sizes": [7, 3],
            "strides": [4, 2],
            "padding": [3, 1],
            "mlp_ratio": 3.0,
            "drop_path_rate": 0.0,
            "layer_scale_init_value": 1.0,
        },
        num_steps=420,
    ),
)


def labellings(descriptions: Sequence[Description]) -> dict[str, torch.Tensor]:
    """
    Labels images by their descriptions.

    Returns:
        The labels `"color"`, `"shape"` and `"color and shape"`, a `torch.LongTensor` of shape `(num_images,)` each,
        -1 if the label of an image is unknown.
    """
    color = torch.tensor([-1 if item.color is None else COLORS.index(item.color) for item in descriptions])
    shape = torch.tensor([-1 if item.shape is None else SHAPES.index(item.shape) for item in descriptions])
    both = torch.where((color >= 0) & (shape >= 0), color * len(SHAPES) + shape, -1)
    return {"color": color, "shape": shape, "color and shape": both}
