"""The projector from the encoder's width to the language model's."""

import torch
from torch import nn
from transformers.activations import ACT2FN

from ..configuration.configuration_hawaii import HawaiiConfig


class HawaiiMultiModalProjector(nn.Module):
    """LLaVA-1.5's projector: two linear layers with an activation in between."""

    def __init__(self, config: HawaiiConfig):
        super().__init__()
        width = config.text_config.hidden_size
        self.linear_1 = nn.Linear(config.vision_config.hidden_size, width, bias=config.multimodal_projector_bias)
        self.activation = ACT2FN[config.projector_hidden_act]
        self.linear_2 = nn.Linear(width, width, bias=config.multimodal_projector_bias)

    def forward(self, image_features: torch.Tensor) -> torch.Tensor:
        """From `(num_images, num_patches, vision_hidden_size)` to `(num_images, num_patches, hidden_size)`."""
        return self.linear_2(self.activation(self.linear_1(image_features)))
