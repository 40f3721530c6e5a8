"""Which class loads a checkpoint as an expert, and what of it is never built: text halves, decoders, last layers."""

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING, MODEL_MAPPING

from ... import HawaiiVisionConfig  # from the root, which registers the Auto classes
from ...files.user_error import UserError
from .config import TeacherConfig
from .errors import TeacherError, check_layer, in_one_sentence
from .grids import resize_grid


# Where the vision half stands in the files of a whole model, for those of which transformers does not know.
HALF_KEYS = {
    r"^(model\.)?(vision_tower|vision_model|backbone)\.": "",
    r"^encoder\.(?=(embeddings|encoder|layernorm)\.)": "",  # Pix2Struct's decoder stands beside its encoder
}
# Encoders whose hidden_states are what comes out of their layers, and whose one norm after these is `post_layernorm`:
# of these the layers behind the one that teaches are not built.
PLAIN_ENCODERS = (
    "clip_vision_model",
    "siglip_vision_model",
    "siglip2_vision_model",
    "metaclip_2_vision_model",
    "chinese_clip_vision_model",
    HawaiiVisionConfig.model_type,
)
# What models that see call what they are shown.
IMAGE_INPUTS = ("pixel_values", "flattened_patches")
# Pooling, by the names of its options and of its weights: it comes after the features.
POOLING_OPTIONS = ("vision_use_head", "use_head")
POOLING_WEIGHTS = ("pooler.", "head.")


def vision_half(config: PretrainedConfig) -> PretrainedConfig:
    """The part of a model that sees: its vision half, or the backbone under a head; else the whole."""
    if getattr(config, "vision_config", None) is not None:
        return config.vision_config
    # SAM 2's vision model has a backbone too, and is whole only with its neck; a hybrid's backbone is only its stem.
    is_part = config.model_type.endswith("_vision_model") or getattr(config, "is_hybrid", False)
    if getattr(config, "backbone_config", None) is not None and not is_part:
        return config.backbone_config
    return config


def _model_class(checkpoint: str, whole: PretrainedConfig, half: PretrainedConfig) -> type[PreTrainedModel]:
    """The class of the part that sees. Under a head it is a backbone, which knows its maps."""
    mappings = [MODEL_MAPPING, MODEL_FOR_BACKBONE_MAPPING]
    if half is getattr(whole, "backbone_config", None):
        mappings.reverse()
    # Pix2Struct's vision half and some others are in no Auto class; Pix2StructVisionConfig's is Pix2StructVisionModel.
    name = type(half).__name__.removesuffix("Config") + "Model"
    known: list[Any] = [mapping[type(half)] for mapping in mappings if type(half) in mapping]
    known += [getattr(transformers, name)] if hasattr(transformers, name) else []
    # ViTMAE's own class hides patches by chance, and shuffles the others.
    is_masked = half.model_type == "vit_mae"
    if not known or known[0].main_input_name not in IMAGE_INPUTS or is_masked:
        raise UserError(
            f"The teacher {checkpoint} is a {whole.model_type}, of which transformers {transformers.__version__} has "
            "no model that takes images and gives features; name another checkpoint."
        )
    return known[0]


def _leave_out(half: PretrainedConfig, config: TeacherConfig) -> int | None:
    """Takes out of the configuration what comes after the features; gives the layer that is still to be chosen."""
    for option in POOLING_OPTIONS:  # some versions read them where no configuration declares them
        setattr(half, option, False)
    if config.layer is None or half.model_type not in PLAIN_ENCODERS:
        return config.layer
    num_states = half.num_hidden_layers + 1
    check_layer(config.name, config.layer, num_states)
    half.num_hidden_layers = config.layer % num_states
    return None


def _finish(model: PreTrainedModel, config: TeacherConfig, layer: int | None) -> PreTrainedModel:
    if config.layer is not None and layer is None:
        model.post_layernorm = nn.Identity()  # it stands behind the last layer alone
    encoder = getattr(model, "vision_encoder", None)  # SAM's, which takes images of one size
    if config.image_size is not None and getattr(encoder, "pos_embed", None) is not None:
        patch_size = encoder.config.patch_size
        if config.image_size % patch_size:
            raise TeacherError(
                f"The image_size of teacher {config.name} is {config.image_size}; it must be a multiple of its patch "
                f"size {patch_size}."
            )
        side = config.image_size // patch_size
        encoder.pos_embed = nn.Parameter(resize_grid(encoder.pos_embed.detach(), side))
        encoder.patch_embed.image_size = (config.image_size, config.image_size)
        encoder.config.image_size = config.image_size
    return model


def _check_weights(checkpoint: str, model: PreTrainedModel, report: dict) -> None:
    """Raises an error where weights that the features need are missing or of other shapes."""
    needed = {name for name in model.state_dict() if not name.startswith(POOLING_WEIGHTS)}
    missing = sorted(needed & set(report["missing_keys"]))
    if missing:
        raise UserError(
            f"{checkpoint} lacks {len(missing)} weights of its {type(model).__name__} ({missing[0]}, ...): as a "
            "teacher it would teach noise. Save it with `save_pretrained` of that class."
        )
    misshapen = sorted(entry for entry in report["mismatched_keys"] if entry[0] in needed)
    if misshapen:
        name, stored, built = misshapen[0]
        raise UserError(
            f"{checkpoint} has {len(misshapen)} weights of other shapes than its configuration says ({name}: "
            f"{list(stored)}, not {list(built)}): one of the two is another model's."
        )


@contextmanager
def _without_reports() -> Iterator[None]:
    """transformers would warn of every weight of the halves and layers that are left out."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def load_vision_model(config: TeacherConfig) -> tuple[PreTrainedModel, int | None]:
    """
    The part of a checkpoint that sees, loaded by transformers from safetensors. Of CLIP, SigLIP and their like the
    layers behind `config.layer` are not built.

    Args:
        config ([`TeacherConfig`]):
            The teacher.

    Returns:
        `tuple[PreTrainedModel, int | None]`: the model, and the layer of its `hidden_states` that is to be chosen;
        none where its last hidden state is what teaches.

    Raises:
        OSError: the hub has no such checkpoint, or it has no safetensors.
        ValueError: transformers has no model for it, weights are missing from it or cannot be read, or it has no such
            layer.
    """
    checkpoint = config.checkpoint
    with in_one_sentence(
        f"transformers {transformers.__version__} does not know the configuration of teacher {checkpoint}, and code "
        "that comes with a checkpoint is never run"
    ):
        whole = AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
    half = vision_half(whole)
    model_class = _model_class(checkpoint, whole, half)
    layer = _leave_out(half, config)
    problem = f"transformers {transformers.__version__} cannot load the teacher {checkpoint}"
    with _without_reports(), in_one_sentence(problem):
        model, report = model_class.from_pretrained(
            checkpoint,
            config=half,
            dtype=getattr(torch, config.dtype),
            key_mapping=None if half is whole else HALF_KEYS,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # they are named below
            output_loading_info=True,
        )
    model = _finish(model, config, layer)
    _check_weights(checkpoint, model, report)
    return model, layer


def outline_vision_model(config: TeacherConfig, architecture: PretrainedConfig) -> tuple[PreTrainedModel, int | None]:
    """The same on the meta device, without weights, from the configuration of the checkpoint."""
    architecture = copy.deepcopy(architecture)  # what is left out is left out of this one
    half = vision_half(architecture)
    model_class = _model_class(config.checkpoint, architecture, half)
    layer = _leave_out(half, config)
    problem = f"transformers {transformers.__version__} cannot build the teacher {config.checkpoint}"
    with torch.device("meta"), in_one_sentence(problem):
        model = model_class(half).to(getattr(torch, config.dtype))
        return _finish(model, config, layer), layer
