"""SigLIP 2 NaFlex as a teacher: its input is flattened patches, in any number."""

import math

import torch
from transformers import PretrainedConfig

from .clip_like import ClipLikeTeacher
from .pix2struct import flatten_patches


class NaflexTeacher(ClipLikeTeacher):
    """
    The vision encoder of a SigLIP 2 NaFlex (`Siglip2VisionModel`), which accepts images of any shape; a SigLIP 2 for
    one resolution is a plain SigLIP. Arguments as for [`Teacher`].

    Raises:
        UserError: patches do not cover the image.
    """

    @classmethod
    def matches(cls, architecture: PretrainedConfig) -> bool:
        return architecture.model_type == "siglip2_vision_model"

    @property
    def native_image_size(self) -> int | None:
        return math.isqrt(self.model.config.num_patches) * self.model.config.patch_size

    def prepare(self) -> None:
        super().prepare()
        self.patch_size = self.model.config.patch_size
        side = self.num_patches_a_side(self.patch_size)
        self.shape = (side, side)
        embeddings = self.model.embeddings
        learned = embeddings.position_embedding.weight.unflatten(0, (embeddings.position_embedding_size, -1))
        sizes = torch.tensor([self.shape], device="cpu")  # the function reads it on the CPU
        self.positions = embeddings.resize_positional_embeddings(learned, sizes, max_length=side * side)  # (1, P, C)

    def preprocess(self, images: torch.Tensor) -> torch.Tensor:
        """Resizes, normalises and cuts images into patches `(I, P, p * p * 3)`, on their device."""
        return flatten_patches(super().preprocess(images), self.patch_size)

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Runs the parts of the encoder; the model's own forward would wait for the device to find padding."""
        hidden_states = self.model.embeddings.patch_embedding(pixels) + self.positions
        outputs = self.model.encoder(inputs_embeds=hidden_states)
        return self.model.post_layernorm(outputs.last_hidden_state).unflatten(1, self.shape)
