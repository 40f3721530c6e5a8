"""Loads the teachers that a recipe names."""

from contextlib import contextmanager

import torch
import transformers
from torch.distributed.fsdp import fully_shard
from transformers import AutoConfig, PretrainedConfig

from ...files.sources import check_source
from ...files.user_error import explain_errors
from .clip_like import ClipLikeTeacher
from .config import TeacherConfig
from .naflex import NaflexTeacher
from .pix2struct import Pix2StructTeacher
from .sam import Sam3Teacher, SamTeacher
from .teacher import Teacher
from .timm_models import TimmArchitecture, TimmTeacher, is_timm
from .transformers_models import TransformersTeacher, vision_part


# The first that matches is used; the last matches every model of transformers.
TEACHER_KINDS: list[type[Teacher]] = [
    TimmTeacher,
    NaflexTeacher,
    ClipLikeTeacher,
    Pix2StructTeacher,
    SamTeacher,
    Sam3Teacher,
    TransformersTeacher,
]


def read_architecture(checkpoint: str) -> PretrainedConfig:
    """Reads the configuration of a checkpoint; timm reads its own, for which there is a placeholder."""
    if is_timm(checkpoint):
        return TimmArchitecture()
    with explain_errors(
        f"transformers {transformers.__version__} does not know the configuration of teacher {checkpoint}, and code "
        "that comes with a checkpoint is never run"
    ):
        return AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)


def find_kind(architecture: PretrainedConfig) -> type[Teacher]:
    """Returns the kind of teacher for a model with this configuration."""
    return next(kind for kind in TEACHER_KINDS if kind.matches(vision_part(architecture)))


def load_teacher(config: TeacherConfig, device: torch.device | str = "cpu") -> Teacher:
    """
    Loads a teacher from a folder or the Hub.

    Raises:
        OSError: the Hub has no such checkpoint, or the checkpoint has no safetensors.
        UserError: the folder does not contain a model, weights are missing, the image processor does something that
            teachers do not support, the grid is unknown, or timm is needed and not installed.
    """
    check_source("teacher", config.checkpoint)
    architecture = read_architecture(config.checkpoint)
    kind = find_kind(architecture)
    return kind(config, kind.load_model(config, architecture).to(device))


def shard(teacher: Teacher) -> None:
    """
    Shards a teacher's weights over all processes, which then must call it equally often. Each call gathers them once,
    for any number of images, and frees them afterwards. The features are the same.
    """
    model = fully_shard(teacher.model, reshard_after_forward=False)

    @contextmanager
    def gathered():
        model.unshard()
        try:
            yield
        finally:
            model.reshard()

    teacher.whole_model = gathered


def load_teachers(
    configs: list[TeacherConfig], device: torch.device | str = "cpu", is_sharded: bool = False
) -> list[Teacher]:
    """
    Loads all teachers of a recipe; with `is_sharded`, each process keeps only a part of their weights, see [`shard`].
    """
    teachers = []
    for config in configs:
        teachers.append(load_teacher(config, device))
        if is_sharded and torch.distributed.is_initialized():
            shard(teachers[-1])
    return teachers


def outline_teacher(config: TeacherConfig, architecture: PretrainedConfig | None = None) -> Teacher:
    """
    Builds a teacher without weights on the meta device, to know its grid, parameters and costs.

    Args:
        config ([`TeacherConfig`]):
            The teacher.
        architecture (`PretrainedConfig`, *optional*):
            Configuration of the checkpoint; read from the checkpoint if not given.

    Raises:
        UserError: the grid is unknown, or timm is needed and not installed.
    """
    check_source("teacher", config.checkpoint)
    architecture = architecture or read_architecture(config.checkpoint)
    kind = find_kind(architecture)
    return kind(config, kind.outline_model(config, architecture))
