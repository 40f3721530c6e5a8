"""SigLIP 2 of the NaFlex kind as a teacher: it is shown flattened patches, as many as there are."""

import torch

from .pix2struct import flatten_patches
from .teacher import Teacher


class NaflexTeacher(Teacher):
    """
    The image half of a SigLIP 2 that takes images of any shape (`Siglip2VisionModel`, built up to the layer that
    teaches). Those that are made for one resolution are plain SigLIPs. Arguments as for [`Teacher`].

    Raises:
        ValueError: patches do not cover the square.
    """

    def prepare(self) -> None:
        self.patch_size = self.model.config.patch_size
        side = self.num_patches_a_side(self.patch_size)
        self.shape = (side, side)
        embeddings = self.model.embeddings
        learned = embeddings.position_embedding.weight.unflatten(0, (embeddings.position_embedding_size, -1))
        sizes = torch.tensor([self.shape], device="cpu")  # it is read there
        self.positions = embeddings.resize_positional_embeddings(learned, sizes, max_length=side * side)  # (1, P, C)

    def preprocess(self, images: torch.Tensor) -> torch.Tensor:
        """Resizes, normalises and cuts into patches, on the device: `(I, P, p * p * 3)`."""
        return flatten_patches(super().preprocess(images), self.patch_size)

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Runs the encoder part by part: its own forward would ask the device where there is padding."""
        hidden_states = self.model.embeddings.patch_embedding(pixels) + self.positions
        outputs = self.model.encoder(inputs_embeds=hidden_states)
        return self.model.post_layernorm(outputs.last_hidden_state).unflatten(1, self.shape)
