"""A teacher that also returns its class token and the attention of the class token."""

import copy
from typing import Any, NamedTuple

import torch
from torch import nn

from ...files.user_error import UserError, explain_errors
from ..teachers.teacher import Teacher


# Shapes: I images, H heads, h x w grid, P tokens: the class token, registers if there are any, the h * w patches.


class ClassTokenFeatures(NamedTuple):
    """
    Output of a [`ClassTokenTeacher`].

    Args:
        grid (`torch.FloatTensor` of shape `(num_images, height, width, channels)`):
            Features of the patches.
        class_token (`torch.FloatTensor` of shape `(num_images, channels)`):
            Class token of the same layer.
        class_attention (`torch.FloatTensor` of shape `(num_images, height * width)`):
            Attention of the class token to each patch in that layer, averaged over heads. Its attention to itself and
            to registers is left out, so that the sum is less than one.
    """

    grid: torch.Tensor
    class_token: torch.Tensor
    class_attention: torch.Tensor


class ClassTokenGrid(NamedTuple):
    """Height, width and channels of the features of a [`ClassTokenTeacher`]."""

    height: int
    width: int
    channels: int


class ClassTokenTeacher:
    """
    A teacher that returns [`ClassTokenFeatures`], all from one forward pass.

    Only the "eager" implementation of attention returns weights. It is slower and needs more memory than others, so
    only the layer that the features come from uses it.

    Args:
        teacher (`Teacher`):
            The teacher, whose model is modified.

    Raises:
        UserError: the model has no class token, or no attention weights are available.
    """

    def __init__(self, teacher: Teacher):
        self.teacher: Any = teacher  # the kinds that have a class token also have `select_layer`
        self.name, self.model, self.image_size = teacher.name, teacher.model, teacher.image_size
        self.grid = ClassTokenGrid(*teacher.grid)
        self._tokens: list[torch.Tensor] = []
        self._attentions: list[torch.Tensor] = []
        problem = f"The class token of teacher {self.name} ({type(self.model).__name__}) and its attention are unknown"
        attention = teacher.class_token_attention()
        if attention is None:
            raise UserError(f"{problem}: it is not a vision transformer of transformers with a class token.")
        attention.config = copy.deepcopy(attention.config)
        attention.config._attn_implementation = "eager"
        attention.register_forward_hook(self._keep_attention)
        self.model.register_forward_hook(self._keep_tokens)
        side = self.image_size
        with explain_errors(problem):  # a model of transformers can raise any error
            self(torch.zeros(1, 3, side, side, dtype=torch.uint8, device=teacher.device))

    def __call__(self, images: torch.Tensor) -> ClassTokenFeatures:
        """Like [`Teacher.__call__`]."""
        self._tokens, self._attentions = [], []
        grid = self.teacher(images)
        class_token, class_attention = torch.cat(self._tokens), torch.cat(self._attentions)
        self._tokens, self._attentions = [], []
        return ClassTokenFeatures(grid, class_token, class_attention)

    def _keep_attention(self, module: nn.Module, inputs: tuple, outputs: tuple) -> None:
        weights = outputs[1]  # (I, H, P, P)
        num_patches = self.grid.height * self.grid.width
        self._attentions.append(weights[:, :, 0, -num_patches:].mean(dim=1))

    def _keep_tokens(self, model: nn.Module, inputs: tuple, outputs) -> None:
        self._tokens.append(self.teacher.select_layer(outputs)[:, 0])  # of (I, P, C)
