"""Models of timm as teachers, from a folder or the Hub."""

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from transformers import PretrainedConfig

from ...files.user_error import UserError, explain_errors
from .config import TeacherConfig
from .teacher import Teacher, check_layer
from .transformers_models import check_resample


CONFIG = "config.json"
# timm's prefix for names that are folders.
FOLDER = "local-dir:"
# Names of the weights in timm's repositories and from `save_for_hf`; the second contain an OpenCLIP's image encoder.
WEIGHTS = ("model.safetensors", "open_clip_model.safetensors")


class TimmArchitecture(PretrainedConfig):
    """Placeholder for the configuration of a checkpoint that timm loads, because timm reads its own format."""

    model_type = "timm"


def is_timm(checkpoint: str) -> bool:
    """Whether timm, not transformers, loads this checkpoint: a hub id of timm, or a folder from `save_for_hf`."""
    if not Path(checkpoint).is_dir():
        return checkpoint.startswith("timm/")
    try:
        config = json.loads((Path(checkpoint) / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "architecture" in config and "model_type" not in config


def import_timm(checkpoint: str) -> ModuleType:
    """
    Imports timm, which is optional.

    Raises:
        UserError: timm is not installed, or one of its requirements does not work.
    """
    try:
        import timm  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            f"The teacher {checkpoint} needs timm, which cannot be imported ({error}): "
            '`pip install "hawaii-vlm[timm]"`.'
        ) from error
    except RuntimeError as error:  # from a torchvision that was built for another torch
        raise UserError(
            f"The teacher {checkpoint} needs timm, and the installed torchvision, which timm needs, does not work "
            f"({error}): install the torchvision that was built for torch {torch.__version__}."
        ) from error
    return timm


def find_weights(checkpoint: str) -> Path:
    """Returns the file of weights of a folder or, downloaded together with its configuration, of a hub id."""
    folder = Path(checkpoint)
    is_folder = folder.is_dir()
    if not is_folder:
        hf_hub_download(checkpoint, CONFIG)
    for name in WEIGHTS:
        try:
            path = folder / name if is_folder else Path(hf_hub_download(checkpoint, name))
        except LocalEntryNotFoundError:
            raise  # the file may exist, but the Hub cannot be reached
        except EntryNotFoundError:
            continue
        if path.is_file():
            return path
    raise UserError(
        f"The teacher {checkpoint} has none of {', '.join(WEIGHTS)}: only safetensors are read, because a pickle can "
        "run code. If you trust it, load it with timm and save it with "
        "`timm.models.save_for_hf(model, FOLDER, safe_serialization=True)`."
    )


def create_model(checkpoint: str, source: str, image_size: int | None, **options) -> Any:
    """Creates a model from timm's name of its `source`, without classifier and pooling."""
    timm = import_timm(checkpoint)
    with explain_errors(f"timm {timm.__version__} cannot load the teacher {checkpoint}"):
        architecture = source
        if source.startswith(FOLDER):
            values = json.loads((Path(source.removeprefix(FOLDER)) / CONFIG).read_text(encoding="utf-8"))
            architecture = values["architecture"]
        defaults = timm.get_pretrained_cfg(architecture)
        if image_size is not None and defaults is not None and defaults.fixed_input_size:
            options["img_size"] = image_size  # timm then resizes the position embeddings
        model = timm.create_model(source, **options)
    if hasattr(model, "reset_classifier"):  # models that are only an encoder have none
        model.reset_classifier(0)
    if getattr(model, "attn_pool", None) is not None:
        model.attn_pool = None  # SigLIP's pooling comes after the features
    return model


class TimmTeacher(Teacher):
    """A model of timm. Arguments as for [`Teacher`]; `layer` counts its blocks or its stages, from zero."""

    @classmethod
    def matches(cls, architecture: PretrainedConfig) -> bool:
        return isinstance(architecture, TimmArchitecture)

    @classmethod
    def load_model(cls, config: TeacherConfig, architecture: PretrainedConfig) -> Any:
        checkpoint = config.checkpoint
        import_timm(checkpoint)
        with explain_errors(f"The teacher {checkpoint} cannot be found"):
            weights = find_weights(checkpoint)
        # The number of classes stays as in the file: otherwise timm tolerates missing weights. `file` makes timm read
        # no other file.
        overlay = {"source": "", "file": str(weights), "custom_load": False}
        source = f"{FOLDER}{weights.parent}"
        model = create_model(checkpoint, source, config.image_size, pretrained=True, pretrained_cfg_overlay=overlay)
        return model.to(getattr(torch, config.dtype))

    @classmethod
    def outline_model(cls, config: TeacherConfig, architecture: PretrainedConfig) -> Any:
        checkpoint = config.checkpoint
        source = f"{FOLDER}{checkpoint}" if Path(checkpoint).is_dir() else checkpoint.partition("/")[2]
        with torch.device("meta"):
            model = create_model(checkpoint, source, config.image_size)
        return model.to(getattr(torch, config.dtype))

    @property
    def native_image_size(self) -> int | None:
        return self.model.pretrained_cfg["input_size"][-1]

    def complete(self, config: TeacherConfig) -> TeacherConfig:
        defaults = self.model.pretrained_cfg
        name = defaults["interpolation"]
        return replace(
            config,
            image_size=config.image_size or self.native_image_size,
            image_mean=config.image_mean or defaults["mean"],
            image_std=config.image_std or defaults["std"],
            resample=config.resample or check_resample(name, name, config.checkpoint),
        )

    def prepare(self) -> None:
        if self.layer is not None:
            check_layer(self.name, self.layer, len(self.model.feature_info))
        self.patch_size = self.model.feature_info[-1]["reduction"]
        if hasattr(self.model, "num_prefix_tokens"):  # a vision transformer; others may return maps of any size
            self.num_patches_a_side(self.patch_size)

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        if self.layer is not None:
            maps = self.model.forward_intermediates(
                pixels, indices=[self.layer], output_fmt="NCHW", intermediates_only=True, stop_early=True
            )
            return maps[0].permute(0, 2, 3, 1)
        features = self.model.forward_features(pixels)
        if not isinstance(features, torch.Tensor):
            raise self.unknown_grid(f"it returns {len(features)} outputs, not one map")
        if features.ndim == 4:
            # Models with channels last, such as Swin, have this attribute.
            return features if getattr(self.model, "output_fmt", "NCHW") == "NHWC" else features.permute(0, 2, 3, 1)
        tokens = features[:, getattr(self.model, "num_prefix_tokens", 0) :]
        side = self.num_patches_a_side(self.patch_size)
        if tokens.shape[1] != side * side:
            raise self.unknown_grid(
                f"it returns {tokens.shape[1]} tokens besides class and register tokens, not {side} x {side}"
            )
        return tokens.unflatten(1, (side, side))
