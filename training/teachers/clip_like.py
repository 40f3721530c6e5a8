"""CLIP, SigLIP and similar encoders as teachers: the layers after the chosen one are removed."""

from typing import Any

from torch import nn
from transformers import PretrainedConfig

from ... import HawaiiVisionConfig  # from the root, which registers the Auto classes
from .config import TeacherConfig
from .teacher import check_layer
from .transformers_models import TransformersTeacher


# Encoders whose `hidden_states` are the outputs of their layers, and whose only norm after these is `post_layernorm`.
CLIP_LIKE = (
    "clip_vision_model",
    "siglip_vision_model",
    "metaclip_2_vision_model",
    "chinese_clip_vision_model",
    HawaiiVisionConfig.model_type,
)


class ClipLikeTeacher(TransformersTeacher):
    """An encoder that ends with the layer of its features. Arguments as for [`Teacher`]."""

    @classmethod
    def matches(cls, architecture: PretrainedConfig) -> bool:
        return architecture.model_type in CLIP_LIKE

    @classmethod
    def trim(cls, config: TeacherConfig, model: Any) -> None:
        if config.layer is not None:
            layers = getattr(model, "encoder", model).layers  # HAWAII's own encoder has no inner module
            check_layer(config.name, config.layer, len(layers) + 1)
            del layers[config.layer % (len(layers) + 1) :]
            model.post_layernorm = nn.Identity()  # it belongs to the last layer only

    def prepare(self) -> None:
        self.layer = None  # the output of the trimmed model
        super().prepare()
