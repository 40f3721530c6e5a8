"""Models of transformers as teachers: their vision part is loaded without text encoder, decoder, head and pooling."""

import copy
import inspect
import logging
import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from transformers import AutoImageProcessor, BaseImageProcessor, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING, MODEL_MAPPING
from transformers.utils import is_torchvision_available

from ...files.user_error import UserError, explain_errors
from .config import TeacherConfig
from .teacher import Teacher, check_layer


# Prefixes of the vision part in the files of a complete model, if transformers does not map them itself.
VISION_KEYS = {
    r"^(model\.)?(vision_tower|vision_model|backbone)\.": "",
    r"^encoder\.(?=(embeddings|encoder|layernorm)\.)": "",  # Pix2Struct's decoder is next to its encoder
}
IMAGE_INPUTS = ("pixel_values", "flattened_patches")
# Options of pooling, and prefixes of its weights.
POOLING_OPTIONS = ("vision_use_head", "use_head")
POOLING_WEIGHTS = ("pooler.", "head.")
# Pillow's numbers of the filters that teachers support.
FILTERS = {2: "bilinear", 3: "bicubic"}


def vision_part(architecture: PretrainedConfig) -> PretrainedConfig:
    """Returns the configuration of a model's vision encoder or of the backbone under a head, else its own."""
    # SAM 3's published checkpoint is for videos: the detector has the encoder, and the tracker has none.
    architecture = getattr(architecture, "detector_config", None) or architecture
    if getattr(architecture, "vision_config", None) is not None:
        return architecture.vision_config
    # SAM 2's vision model is only complete with the neck on its backbone; the backbone of a hybrid is only its stem.
    is_part = architecture.model_type.endswith("_vision_model") or getattr(architecture, "is_hybrid", False)
    if getattr(architecture, "backbone_config", None) is not None and not is_part:
        return architecture.backbone_config
    return architecture


def without_pooling(config: PretrainedConfig) -> PretrainedConfig:
    """Returns a copy of a configuration whose model has no pooling, which comes after the features."""
    config = copy.deepcopy(config)
    for option in POOLING_OPTIONS:  # some versions of transformers read them although no configuration declares them
        setattr(config, option, False)
    return config


def num_class_tokens(config: PretrainedConfig) -> int:
    """Returns how many tokens, according to its configuration, a model may put before those of the patches."""
    if hasattr(config, "num_summary_tokens"):  # RADIO's count includes its registers
        return config.num_summary_tokens
    # DeiT also has a token for distillation; Pixio configures the number; not every configuration has registers.
    num_classes = 2 if config.model_type == "deit" else getattr(config, "n_cls_tokens", 1)
    return num_classes + getattr(config, "num_register_tokens", 0)


def pixels_per_token(config: PretrainedConfig) -> int | None:
    """Returns the side of the square that each token covers, in pixels, if the configuration defines it."""
    if config.model_type == "dinov3_convnext":
        return 2 ** (len(config.hidden_sizes) + 1)  # 4 pixels in the first stage, twice as many in each further one
    size = getattr(config, "patch_size", None)
    sides = set(size) if isinstance(size, list | tuple) else {size}  # InternVL's is a list of two
    return sides.pop() if len(sides) == 1 else None


def find_model_class(checkpoint: str, architecture: PretrainedConfig) -> type[PreTrainedModel]:
    """Returns the class of the vision part. Under a head it is a backbone, because only that returns maps."""
    part = vision_part(architecture)
    mappings = [MODEL_MAPPING, MODEL_FOR_BACKBONE_MAPPING]
    if part is getattr(architecture, "backbone_config", None):
        mappings.reverse()
    # Some vision parts are in no Auto class, but follow the names: Pix2StructVisionConfig is Pix2StructVisionModel's.
    name = type(part).__name__.removesuffix("Config") + "Model"
    classes: list[Any] = [mapping[type(part)] for mapping in mappings if type(part) in mapping]
    classes += [getattr(transformers, name)] if hasattr(transformers, name) else []
    is_masked = part.model_type == "vit_mae"  # the model hides random patches and shuffles the others
    if not classes or classes[0].main_input_name not in IMAGE_INPUTS or is_masked:
        raise UserError(
            f"The teacher {checkpoint} is a {architecture.model_type}, for which transformers "
            f"{transformers.__version__} has no model that maps images to features; choose another checkpoint."
        )
    return classes[0]


def check_weights(checkpoint: str, model: PreTrainedModel, report: dict) -> None:
    """Raises an error if weights that the features depend on are missing or have other shapes."""
    needed = {name for name in model.state_dict() if not name.startswith(POOLING_WEIGHTS)}
    missing = sorted(needed & set(report["missing_keys"]))
    if missing:
        raise UserError(
            f"{checkpoint} lacks {len(missing)} weights of its {type(model).__name__} ({missing[0]}, ...), and a "
            "teacher cannot have random weights. Save it with `save_pretrained` of that class."
        )
    mismatched = sorted(entry for entry in report["mismatched_keys"] if entry[0] in needed)
    if mismatched:
        name, stored, configured = mismatched[0]
        raise UserError(
            f"{checkpoint} has {len(mismatched)} weights whose shapes differ from its configuration ({name}: "
            f"{list(stored)}, not {list(configured)}): the weights or the configuration belong to another model."
        )


def load_image_processor(checkpoint: str) -> Any:
    """Loads an image processor, or only its fields if its class needs torchvision and that is not installed."""
    problem = (
        f"The image processor of teacher {checkpoint} could not be read (set image_size, image_mean, image_std and "
        "resample in the recipe if it has none)"
    )
    try:
        return AutoImageProcessor.from_pretrained(checkpoint, trust_remote_code=False)
    except Exception as error:  # libraries raise errors of every type for the files of a checkpoint
        if not is_torchvision_available() and not isinstance(error, OSError):
            fields, _ = BaseImageProcessor.get_image_processor_dict(checkpoint)
            if hasattr(transformers, str(fields.get("image_processor_type")).removesuffix("Fast")):
                return SimpleNamespace(**fields)
        raise UserError(f"{problem}: {error}") from error


def read_image_size(processor: Any, checkpoint: str) -> int:
    """Returns the side of the images that an image processor produces."""
    is_cropped = getattr(processor, "do_center_crop", False)
    size = dict(getattr(processor, "crop_size" if is_cropped else "size", None) or {})
    sides = [size[name] for name in ("height", "shortest_edge", "longest_edge") if size.get(name)]
    if not sides:
        raise UserError(f"The image processor of teacher {checkpoint} defines no size: set image_size in the recipe.")
    return sides[0]


def read_normalization(processor: Any, checkpoint: str) -> tuple[list[float], list[float]]:
    """Returns the mean and standard deviation of an image processor, for values from zero to one."""
    # Not every image processor has all of these fields.
    factor = getattr(processor, "rescale_factor", 1 / 255) if getattr(processor, "do_rescale", True) else 1
    if not math.isclose(factor, 1 / 255, rel_tol=1e-4):
        problem = f"multiplies pixels by {factor:.6g}, but teachers receive values from zero to one"
    elif getattr(processor, "do_flip_channel_order", False):
        problem = "reverses the channels, but teachers receive red, green and blue"
    elif not getattr(processor, "do_normalize", True):
        return [0.0] * 3, [1.0] * 3
    elif None in (getattr(processor, "image_mean", None), getattr(processor, "image_std", None)):
        problem = "normalises images but defines no mean or deviation"
    else:
        return processor.image_mean, processor.image_std
    raise UserError(f"The image processor of teacher {checkpoint} {problem}: set image_mean and image_std.")


def check_resample(resample: str | None, original: Any, checkpoint: str) -> str:
    """Returns a filter that teachers support, or raises an error that quotes the checkpoint's `original` value."""
    if resample not in FILTERS.values():
        raise UserError(
            f"The image processor of teacher {checkpoint} resizes with {original!r}, which teachers do not support: "
            f"set resample to one of {', '.join(FILTERS.values())}."
        )
    return resample


class TransformersTeacher(Teacher):
    """
    A vision model of transformers that maps normalised pixels to patch tokens or to a map. Arguments as for
    [`Teacher`]; `layer` counts the `hidden_states`, for a backbone its feature maps.

    A model with other inputs or outputs needs a subclass that overrides [`Teacher.preprocess`] or
    [`Teacher.features`].
    """

    num_prefix_tokens = 0  # class and register tokens that the features are read without
    vision_keys = VISION_KEYS

    @classmethod
    def matches(cls, architecture: PretrainedConfig) -> bool:
        return True

    @classmethod
    def trim(cls, config: TeacherConfig, model: PreTrainedModel) -> None:
        """Removes parts of a model that the features do not depend on."""

    @classmethod
    def load_model(cls, config: TeacherConfig, architecture: PretrainedConfig) -> PreTrainedModel:
        model_class = find_model_class(config.checkpoint, architecture)
        part = vision_part(architecture)
        is_complete = part is architecture
        problem = f"transformers {transformers.__version__} cannot load the teacher {config.checkpoint}"
        logger = logging.getLogger("transformers")
        level = logger.level
        logger.setLevel(logging.ERROR)  # no warning for each weight that the vision part does not have
        try:
            with explain_errors(problem):
                model, report = model_class.from_pretrained(
                    config.checkpoint,
                    config=without_pooling(part),
                    dtype=getattr(torch, config.dtype),
                    key_mapping=None if is_complete else cls.vision_keys,
                    use_safetensors=True,
                    ignore_mismatched_sizes=True,  # `check_weights` names them
                    output_loading_info=True,
                )
        finally:
            logger.setLevel(level)
        cls.trim(config, model)
        check_weights(config.checkpoint, model, report)
        return model

    @classmethod
    def outline_model(cls, config: TeacherConfig, architecture: PretrainedConfig) -> PreTrainedModel:
        model_class = find_model_class(config.checkpoint, architecture)
        problem = f"transformers {transformers.__version__} cannot build the teacher {config.checkpoint}"
        with torch.device("meta"), explain_errors(problem):
            model = model_class(without_pooling(vision_part(architecture))).to(getattr(torch, config.dtype))
            cls.trim(config, model)
        return model

    @property
    def native_image_size(self) -> int | None:
        size = getattr(self.model.config, "image_size", None)
        return size[0] if isinstance(size, list | tuple) else size

    def complete(self, config: TeacherConfig) -> TeacherConfig:
        config = replace(config, image_size=config.image_size or self.native_image_size)
        if self.device.type == "meta":  # the grid and the costs are the same with any values
            config = replace(config, image_mean=[0.0] * 3, image_std=[1.0] * 3, resample=config.resample or "bicubic")
        if None not in (config.image_size, config.image_mean, config.image_std, config.resample):
            return config
        checkpoint = config.checkpoint
        processor = load_image_processor(checkpoint)
        image_mean, image_std = config.image_mean, config.image_std
        if image_mean is None or image_std is None:
            mean, std = read_normalization(processor, checkpoint)
            image_mean, image_std = image_mean or mean, image_std or std
        number = getattr(processor, "resample", None)
        return replace(
            config,
            image_size=config.image_size or read_image_size(processor, checkpoint),
            image_mean=image_mean,
            image_std=image_std,
            resample=config.resample or check_resample(FILTERS.get(number), number, checkpoint),
        )

    def prepare(self) -> None:
        self.options = {"output_hidden_states": True} if self.layer is not None else {}
        is_other_size = self.native_image_size not in (None, self.image_size)
        if is_other_size and "interpolate_pos_encoding" in inspect.signature(self.model.forward).parameters:
            self.options["interpolate_pos_encoding"] = True

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        features = self.select_layer(self.model(pixels, **self.options))
        if features.ndim != 4:
            return self._tokens_as_grid(features)
        height, width, last = features.shape[1:]
        # Images are square, and so are their maps: the equal sizes show where the channels are. If all three are
        # equal, channels are first, as transformers defines maps.
        if width == last:
            return features.permute(0, 2, 3, 1)
        if height == width:
            return features
        raise self.unknown_grid(f"it returns {height} x {width} x {last}, not a map of channels x side x side")

    def select_layer(self, outputs: Any) -> torch.Tensor:
        """Returns the tokens or the map of the layer that is distilled, from all outputs of the model."""
        if "feature_maps" in outputs:
            return self._choose(outputs.feature_maps, -1 if self.layer is None else self.layer)
        if self.layer is not None:
            name = "reshaped_hidden_states" if "reshaped_hidden_states" in outputs else "hidden_states"
            return self._choose(outputs[name], self.layer)
        if "fpn_hidden_states" in outputs:
            return outputs.fpn_hidden_states[-1]  # the input of SAM 2's decoder
        return outputs.last_hidden_state

    def class_token_attention(self) -> Any:
        # The class of the modules whose weights transformers itself returns as `attentions`.
        attention_class = (getattr(self.model, "_can_record_outputs", None) or {}).get("attentions")
        if not self.num_prefix_tokens or not isinstance(attention_class, type):
            return None
        attentions = [module for module in self.model.modules() if isinstance(module, attention_class)]
        # hidden_states[0] is the input of the first layer, and hidden_states[k] the output of the k-th.
        last = len(attentions) - 1 if self.layer is None else self.layer % (len(attentions) + 1) - 1
        return attentions[last] if last >= 0 else None

    def _choose(self, layers: tuple, layer: int) -> torch.Tensor:
        check_layer(self.name, layer, len(layers))
        return layers[layer]

    def _tokens_as_grid(self, tokens: torch.Tensor) -> torch.Tensor:
        patch_size = pixels_per_token(self.model.config)
        if patch_size is None:
            raise self.unknown_grid(f"it returns {tokens.shape[1]} tokens, and its configuration has no patch size")
        side, num_others = self.num_patches_a_side(patch_size), num_class_tokens(self.model.config)
        self.num_prefix_tokens = tokens.shape[1] - side * side
        if self.num_prefix_tokens not in (0, num_others):
            raise self.unknown_grid(
                f"it returns {tokens.shape[1]} tokens, which is neither {side} x {side} nor that plus {num_others} "
                "class and register tokens"
            )
        return tokens[:, self.num_prefix_tokens :].unflatten(1, (side, side))
