"""SAM's vision encoder as a teacher: its position embeddings are resized to the image size."""

from torch import nn
from transformers import PretrainedConfig

from .grids import resize_grid
from .transformers_models import TransformersTeacher


class SamTeacher(TransformersTeacher):
    """The encoder of SAM or SAM-HQ, with its neck, which accepts images of one size. Arguments as for [`Teacher`]."""

    @classmethod
    def matches(cls, architecture: PretrainedConfig) -> bool:
        return architecture.model_type in ("sam_vision_model", "sam_hq_vision_model")

    def prepare(self) -> None:
        super().prepare()
        encoder, size = self.model.vision_encoder, self.image_size
        side = self.num_patches_a_side(encoder.config.patch_size)
        if encoder.pos_embed is not None:
            encoder.pos_embed = nn.Parameter(resize_grid(encoder.pos_embed, side), requires_grad=False)
        encoder.patch_embed.image_size = (size, size)
