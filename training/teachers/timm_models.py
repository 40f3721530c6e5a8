"""Experts that timm loads: from a folder or the hub, and read as the grid that they see."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from ...files.user_error import UserError
from .config import TeacherConfig
from .errors import TeacherError, check_layer, in_one_sentence
from .teacher import Teacher


CONFIG = "config.json"
# How timm is told that what follows is a folder.
FOLDER = "local-dir:"
# What timm's own hub and `save_for_hf` call the weights; the second are the image half of an OpenCLIP.
WEIGHTS = ("model.safetensors", "open_clip_model.safetensors")


def import_timm(checkpoint: str) -> ModuleType:
    """
    timm, which is optional.

    Raises:
        ValueError: it is not installed, or what it needs does not work.
    """
    try:
        import timm  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            f"The teacher {checkpoint} is timm's, which cannot be imported here ({error}): "
            '`pip install "hawaii-vlm[timm]"`.'
        ) from error
    except RuntimeError as error:  # what a torchvision that was built for another torch raises
        raise UserError(
            f"The teacher {checkpoint} is timm's, and the torchvision that timm needs does not work beside this torch "
            f"({error}): install the torchvision that was built for torch {torch.__version__}."
        ) from error
    return timm


def is_timm_folder(folder: Path) -> bool:
    """Whether timm's `save_for_hf` left this folder."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "architecture" in config and "model_type" not in config


def is_timm(checkpoint: str) -> bool:
    """Whether timm loads this checkpoint, rather than transformers."""
    folder = Path(checkpoint)
    return is_timm_folder(folder) if folder.is_dir() else checkpoint.startswith("timm/")


def _find_weights(checkpoint: str) -> Path:
    """The one file of weights to be read; its configuration lies beside it."""
    problem = (
        f"The teacher {checkpoint} has none of {', '.join(WEIGHTS)}: only safetensors are read, because a pickle can "
        "run code. Load it with timm where you trust it, and save it with "
        "`timm.models.save_for_hf(model, FOLDER, safe_serialization=True)`."
    )
    if Path(checkpoint).is_dir():
        for name in WEIGHTS:
            if (Path(checkpoint) / name).is_file():
                return Path(checkpoint) / name
        raise TeacherError(problem)
    hf_hub_download(checkpoint, CONFIG)
    for name in WEIGHTS:
        try:
            return Path(hf_hub_download(checkpoint, name))
        except LocalEntryNotFoundError:
            raise  # there may be one, but the hub cannot be asked
        except EntryNotFoundError:
            continue
    raise TeacherError(problem)


def _create(checkpoint: str, source: str, image_size: int | None, **options) -> Any:
    timm = import_timm(checkpoint)
    with in_one_sentence(f"timm {timm.__version__} cannot load the teacher {checkpoint}"):
        architecture = source
        if source.startswith(FOLDER):
            values = json.loads((Path(source.removeprefix(FOLDER)) / CONFIG).read_text(encoding="utf-8"))
            architecture = values["architecture"]
        known = timm.get_pretrained_cfg(architecture)
        if image_size is not None and known is not None and known.fixed_input_size:
            options["img_size"] = image_size  # timm resamples the position embeddings to it
        model = timm.create_model(source, **options)
    if hasattr(model, "reset_classifier"):  # encoders alone have none
        model.reset_classifier(0)
    if getattr(model, "attn_pool", None) is not None:
        model.attn_pool = None  # SigLIP's pooling comes after the features
    return model


def load_timm_model(config: TeacherConfig) -> Any:
    """
    A model that timm loads, without its classifier.

    Raises:
        OSError: the hub has no such checkpoint or cannot be asked.
        ValueError: timm is missing, does not know the architecture, or weights are missing or no safetensors.
    """
    import_timm(config.checkpoint)
    with in_one_sentence(f"The teacher {config.checkpoint} cannot be found"):
        weights = _find_weights(config.checkpoint)
    # With as many classes as the file has, timm takes a missing weight for an error. `file`: no other file is read.
    overlay = {"source": "", "file": str(weights), "custom_load": False}
    source = f"{FOLDER}{weights.parent}"
    model = _create(config.checkpoint, source, config.image_size, pretrained=True, pretrained_cfg_overlay=overlay)
    return model.to(getattr(torch, config.dtype))


def outline_timm_model(config: TeacherConfig) -> Any:
    """The same model on the meta device, without weights: of a hub id nothing is downloaded."""
    checkpoint = config.checkpoint
    source = f"{FOLDER}{checkpoint}" if Path(checkpoint).is_dir() else checkpoint.partition("/")[2]
    with torch.device("meta"):
        model = _create(checkpoint, source, config.image_size)
    return model.to(getattr(torch, config.dtype))


class TimmTeacher(Teacher):
    """
    An expert that timm loads. Arguments as for [`Teacher`]; `layer` counts its blocks, or its stages where it has
    such, from zero.
    """

    def prepare(self) -> None:
        if self.layer is not None:
            check_layer(self.name, self.layer, len(self.model.feature_info))
        self.reduction = self.model.feature_info[-1]["reduction"]
        if hasattr(self.model, "num_prefix_tokens"):  # a vision transformer; others may give maps of any image
            self.num_patches_a_side(self.reduction)

    def made_for(self) -> int | None:
        return self.model.pretrained_cfg["input_size"][-1]

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        if self.layer is not None:
            maps = self.model.forward_intermediates(
                pixels, indices=[self.layer], output_fmt="NCHW", intermediates_only=True, stop_early=True
            )
            return maps[0].permute(0, 2, 3, 1)
        features = self.model.forward_features(pixels)
        if not isinstance(features, torch.Tensor):
            raise self.unknown_grid(f"it gives {len(features)} things at once, not one map")
        if features.ndim == 4:
            # Networks that keep channels last, as Swin, say so.
            return features if getattr(self.model, "output_fmt", "NCHW") == "NHWC" else features.permute(0, 2, 3, 1)
        return self._tokens_as_grid(features)

    def _tokens_as_grid(self, tokens: torch.Tensor) -> torch.Tensor:
        tokens = tokens[:, getattr(self.model, "num_prefix_tokens", 0) :]
        side = self.num_patches_a_side(self.reduction)
        if tokens.shape[1] != side * side:
            raise self.unknown_grid(
                f"it gives {tokens.shape[1]} tokens beside its class and register tokens, which is not {side} x {side}"
            )
        return tokens.unflatten(1, (side, side))
