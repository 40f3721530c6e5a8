"""Starts a student from MoVE-KD's released weights: its encoder's adapters are the student's general ones."""

import re

import torch

from ...files.user_error import UserError
from .checkpoint_tensors import CheckpointTensors
from .clip import make_vision_config, vision_targets
from .llava import assemble, is_encoder_part_unneeded
from .llava_checkpoint import LlavaCheckpoint, read_llava
from .tensor_targets import Conversion, TensorTarget


# Both beside the linear layer that MoVE-KD names neither of them after.
ADAPTERS = {"moe_down": "fc1_adapters", "moe_up": "fc2_adapters"}
EXPERT = re.compile(r"vision\.encoder\.layers\.0\.mlp\.moe_down\.(?P<expert>\d+)\.lora_A\.weight")
# What brought teachers to the student's width and tokens in training, and the teachers.
TEACHERS = re.compile(r"\w+_adapter_[12]\.(weight|bias)$|vision_teachers\.")


def _adapter_fields(source: LlavaCheckpoint, tensors: CheckpointTensors) -> dict:
    """What the adapters' tensors say of themselves; the scale alone stands in the configuration."""
    experts = [name for name in tensors.names if EXPERT.fullmatch(source.part_name(name))]
    if not experts:
        raise UserError(f"{source.checkpoint} has no adapters in its encoder: convert it as llava.")
    settings = source.values.get("moe", source.values)
    if settings.get("moe_encoder_dense", False):
        raise UserError(
            f"{source.checkpoint} has moe_encoder_dense: all adapters act on each token together, and a student's one "
            "at a time."
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
        f"{theirs}.router.{kind}": TensorTarget(f"{ours}.routing.general_router.score.{kind}")
        for kind in ("weight", "bias")
    }
    for their_name, our_name in ADAPTERS.items():
        for expert in range(num_experts):
            for half, view in (("lora_A", None), ("lora_B", torch.t)):
                name = f"{theirs}.{their_name}.{expert}.{half}"
                targets[f"{name}.weight"] = TensorTarget(f"{ours}.{our_name}.{half}", expert, view)
                targets[f"{name}.bias"] = TensorTarget(f"{ours}.{our_name}.{half}_bias", expert)
    return targets


def convert_move_kd(checkpoint: str, vision_tower: str | None = None, dtype: torch.dtype | None = None) -> Conversion:
    """
    Makes a [`HawaiiForConditionalGeneration`] of MoVE-KD's released weights, with the same answers. The adapters of
    its encoder become general ones: one bank, one linear router, the likeliest alone and unweighted, beside each of
    the two linear layers.

    Args:
        checkpoint (`str`):
            Folder or Hub id of a full state dict, in safetensors.
        vision_tower (`str`, *optional*):
            Folder or Hub id of the CLIP whose configuration the encoder has; what the checkpoint's configuration names
            if not given.
        dtype (`torch.dtype`, *optional*):
            Type of the parameters; that of the checkpoint's language model if not given.

    Returns:
        [`Conversion`]: what training alone needed, the teachers and what adapted them, is among `unused_tensors`.

    Raises:
        ValueError: it is no MoVE-KD, or one whose adapters all act at once; it lacks a tensor, or holds one that is
            unknown or of another shape.
    """
    source = read_llava(checkpoint, vision_tower)
    tensors = CheckpointTensors(checkpoint)
    fields = _adapter_fields(source, tensors)
    vision = make_vision_config(source.vision_config, source.vision_feature_layer, fields)
    targets = {
        re.sub(r"\.mlp\.fc", ".mlp.original_module.fc", name): place
        for name, place in vision_targets(source.vision_config, vision).items()
    }
    for layer in range(vision.num_hidden_layers):
        targets |= _adapter_targets(layer, fields["num_general_adapters"])
    return assemble(
        source,
        tensors,
        vision,
        targets,
        lambda part: is_encoder_part_unneeded(part, vision.num_hidden_layers) or bool(TEACHERS.match(part)),
        dtype,
    )
