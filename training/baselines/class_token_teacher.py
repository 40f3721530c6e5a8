"""A teacher that also tells what its class token is and what it looks at."""

import copy
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from ..teachers.errors import TeacherError
from ..teachers.teacher import Teacher


# Shapes: I images, H heads, h x w grid, P tokens: the class token, registers if there are any, the h * w patches.


class ClassTokenFeatures(NamedTuple):
    """
    What a teacher of this kind sees.

    Args:
        grid (`torch.FloatTensor` of shape `(num_images, height, width, channels)`):
            Its features.
        class_token (`torch.FloatTensor` of shape `(num_images, channels)`):
            The class token beside them, of the same layer.
        class_attention (`torch.FloatTensor` of shape `(num_images, height * width)`):
            What the class token pays each patch in the layer that the features come from, a mean over heads. It pays
            the rest of one to itself and to registers.
    """

    grid: torch.Tensor
    class_token: torch.Tensor
    class_attention: torch.Tensor


class ClassTokenGrid(NamedTuple):
    """Height, width and channels of a teacher that gives [`ClassTokenFeatures`]."""

    height: int
    width: int
    channels: int


def _taught_attention(teacher: Teacher) -> Any:
    """The attention of the layer that the features come from, or `None` where that is not known."""
    if type(teacher) is not Teacher or not isinstance(teacher.model, PreTrainedModel):
        return None  # others read their tokens in ways of their own
    # What transformers itself would record as `attentions`.
    kind = (teacher.model._can_record_outputs or {}).get("attentions")
    if not isinstance(kind, type):
        return None
    attentions = [module for module in teacher.model.modules() if isinstance(module, kind)]
    # hidden_states[0] goes into the first layer, and hidden_states[k] is the output of the k-th.
    last = len(attentions) - 1 if teacher.layer is None else teacher.layer % (len(attentions) + 1) - 1
    return attentions[last] if last >= 0 else None


class ClassTokenTeacher:
    """
    A teacher whose entry among the features is [`ClassTokenFeatures`], all from one forward.

    Only the "eager" implementation of attention gives its weights, and it is slower and takes more memory than others;
    here the one layer that is looked at uses it.

    Args:
        teacher (`Teacher`):
            The teacher, whose model is changed for it.

    Raises:
        TeacherError: its model has no class token, or its attention cannot be had.
    """

    def __init__(self, teacher: Teacher):
        self.teacher = teacher
        self.name, self.model, self.image_size = teacher.name, teacher.model, teacher.image_size
        self.grid = ClassTokenGrid(*teacher.grid)
        self._tokens: list[torch.Tensor] = []
        self._attentions: list[torch.Tensor] = []
        problem = f"The class token of teacher {self.name} ({type(self.model).__name__}) and its attention are unknown"
        attention = _taught_attention(teacher)
        if attention is None:
            raise TeacherError(f"{problem}: it is no vision transformer that transformers loads.")
        shared_config = attention.config
        attention.config = copy.deepcopy(shared_config)
        attention.config._attn_implementation = "eager"
        hooks = [
            attention.register_forward_hook(self._keep_attention),
            self.model.register_forward_hook(self._keep_tokens),
        ]
        side = self.image_size
        try:
            self(torch.zeros(1, 3, side, side, dtype=torch.uint8, device=teacher.device))
        except Exception as error:  # by somebody else's model: any kind
            attention.config = shared_config
            for hook in hooks:
                hook.remove()
            raise TeacherError(f"{problem}: {error}") from error

    def __call__(self, images: torch.Tensor) -> ClassTokenFeatures:
        """As [`Teacher.__call__`]."""
        self._tokens, self._attentions = [], []
        grid = self.teacher(images)
        class_token, class_attention = torch.cat(self._tokens), torch.cat(self._attentions)
        self._tokens, self._attentions = [], []
        return ClassTokenFeatures(grid, class_token, class_attention)

    def _num_patches(self, num_tokens: int) -> int:
        num_patches = self.grid.height * self.grid.width
        if num_tokens <= num_patches:
            raise TeacherError(f"it has {num_tokens} tokens for {num_patches} patches.")
        return num_patches

    def _keep_attention(self, module: nn.Module, inputs: tuple, outputs: tuple) -> None:
        weights = outputs[1]  # (I, H, P, P)
        self._attentions.append(weights[:, :, 0, -self._num_patches(weights.shape[-1]) :].mean(dim=1))

    def _keep_tokens(self, model: nn.Module, inputs: tuple, outputs) -> None:
        tokens = self.teacher.taught(outputs)
        if tokens.ndim != 3:
            raise TeacherError("its features are a map.")
        self._num_patches(tokens.shape[1])  # (I, P, C)
        self._tokens.append(tokens[:, 0])
