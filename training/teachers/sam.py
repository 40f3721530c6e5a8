"""The vision encoders of SAM, SAM-HQ and SAM 3 as teachers: their positions are adapted to the image size."""

import copy
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig

from .config import TeacherConfig
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


class Sam3Teacher(TransformersTeacher):
    """
    The encoder of SAM 3 and the layer of its neck that keeps the encoder's grid: the map that the detector attends to.
    The layers of the neck for other scales are removed. Arguments as for [`Teacher`]; `layer` counts the encoder's
    `hidden_states`, before the neck.
    """

    vision_keys = {r"^(detector_model\.)?vision_encoder\.": ""}

    @classmethod
    def matches(cls, architecture: PretrainedConfig) -> bool:
        return architecture.model_type == "sam3_vision_model"

    @classmethod
    def trim(cls, config: TeacherConfig, model: Any) -> None:
        layers = model.neck.fpn_layers
        kept = [layers[index] for index, scale in enumerate(model.config.scale_factors) if scale == 1]
        model.neck.fpn_layers = nn.ModuleList(kept if config.layer is None else [])

    def prepare(self) -> None:
        super().prepare()
        backbone = self.model.backbone
        config = copy.deepcopy(backbone.config)
        config.image_size = self.num_patches_a_side(config.patch_size) * config.patch_size
        for layer in backbone.layers:  # rotary positions, which the model computes for its native size only
            positions = layer.precompute_positions(config, layer.window_size)
            layer.position_ids = nn.Buffer(positions.to(self.device, torch.float32), persistent=False)

    def select_layer(self, outputs: Any) -> torch.Tensor:
        if self.layer is not None:
            return super().select_layer(outputs)
        return outputs.fpn_hidden_states[0]
