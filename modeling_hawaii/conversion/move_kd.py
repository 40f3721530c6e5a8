"""Starts a student from MoVE-KD's released weights: its encoder's adapters become the student's general adapters."""

import re

import torch

from ...files.user_error import UserError
from .checkpoint_tensors import CheckpointTensors
from .clip import make_vision_config, vision_targets
from .llava import assemble
from .llava_checkpoint import LlavaCheckpoint, read_llava
from .tensor_targets import Conversion, TensorTarget


# MoVE-KD's names of the adapters next to the first and to the second linear layer.
ADAPTERS = {"moe_down": "fc1_adapters", "moe_up": "fc2_adapters"}
EXPERT = re.compile(r"vision\.encoder\.layers\.0\.mlp\.moe_down\.\d+\.lora_A\.weight")
# The teachers, and the layers that mapped their features to the student's width and tokens in training.
TEACHERS = re.compile(r"\w+_adapter_[12]\.(weight|bias)$|vision_teachers\.")


def _adapter_fields(source: LlavaCheckpoint, tensors: CheckpointTensors) -> dict:
    """Reads the adapters' number and rank off their tensors; the configuration gives only their scale."""
    experts = [name for name in tensors.names if EXPERT.fullmatch(source.part_name(name))]
    if not experts:
        raise UserError(f"{source.checkpoint} has no adapters in its encoder: convert it as llava.")
    settings = source.values.get("moe", source.values)
    if settings.get("moe_encoder_dense", False):
        raise UserError(
            f"{source.checkpoint} has moe_encoder_dense: all adapters act on each token, but a student applies one "
            "per token."
        )
    return {
        "num_teacher_adapters": 0,
        "num_general_adapters": len(experts),
        "adapter_placement": "linear",
        "lora_rank": tensors.shapes[experts[0]][0],
        "lora_alpha": settings.get("moe_encoder_lora_alpha", 1),
        "lora_bias": True,
        "router_hidden_size": None,
        "router_gradient": "none",
    }


def _adapter_targets(layer: int, num_experts: int) -> dict[str, TensorTarget]:
    theirs, ours = f"encoder.layers.{layer}.mlp", f"layers.{layer}.feed_forward"
    targets = {
        f"{theirs}.router.{parameter}": TensorTarget(f"{ours}.routing.general_router.score.{parameter}")
        for parameter in ("weight", "bias")
    }
    for their_name, our_name in ADAPTERS.items():
        for expert in range(num_experts):
            for their_half, our_half, view in (("lora_A", "down", None), ("lora_B", "up", torch.t)):
                name = f"{theirs}.{their_name}.{expert}.{their_half}"
                targets[f"{name}.weight"] = TensorTarget(f"{ours}.{our_name}.{our_half}", expert, view)
                targets[f"{name}.bias"] = TensorTarget(f"{ours}.{our_name}.{our_half}_bias", expert)
    return targets


def convert_move_kd(checkpoint: str, vision_tower: str | None = None, dtype: torch.dtype | None = None) -> Conversion:
    """
    Converts MoVE-KD's released weights to a [`HawaiiForConditionalGeneration`] that gives the same answers. The
    adapters of its encoder become general ones: one bank with one linear router, of which the most likely adapter acts
    alone and unweighted, next to each of the two linear layers. The unused tensors include the teachers and the layers
    that adapted them. Arguments and errors as for [`convert_llava`].
    """
    source = read_llava(checkpoint, vision_tower)
    tensors = CheckpointTensors(checkpoint)
    fields = _adapter_fields(source, tensors)
    vision = make_vision_config(source.vision_config, source.vision_feature_layer, fields)
    targets = {
        re.sub(r"\.mlp\.fc", ".mlp.original_module.fc", name): target
        for name, target in vision_targets(source.vision_config, vision).items()
    }
    for layer in range(vision.num_hidden_layers):
        targets |= _adapter_targets(layer, fields["num_general_adapters"])
    return assemble(source, tensors, vision, targets, dtype, unneeded=TEACHERS)
