"""The digest of the files that a teacher is made from."""

from pathlib import Path

from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file, get_checkpoint_shard_files

from ...files.digest import digest_files
from ...files.user_error import UserError, explain_errors
from ..teachers.config import TeacherConfig
from ..teachers.timm_models import CONFIG, find_weights, is_timm


PROCESSOR_NAMES = ("preprocessor_config.json", "processor_config.json")


def _optional(checkpoint: str, name: str) -> Path | None:
    path = cached_file(checkpoint, name, _raise_exceptions_for_missing_entries=False)
    return None if path is None else Path(path)


def _weight_files(checkpoint: str) -> list[Path]:
    """
    Returns the files that `from_pretrained` reads, from a folder or from the Hub, where missing files are downloaded.
    """
    if is_timm(checkpoint):
        weights = find_weights(checkpoint)
        return [weights.with_name(CONFIG), weights]
    config = _optional(checkpoint, CONFIG_NAME)
    weights, index = _optional(checkpoint, SAFE_WEIGHTS_NAME), None
    if weights is None:
        index = _optional(checkpoint, SAFE_WEIGHTS_INDEX_NAME)
    if config is None or (weights is None and index is None):
        raise UserError(f"The teacher {checkpoint} has no {CONFIG_NAME} or no weights in safetensors.")
    if weights is not None:
        return [config, weights]
    shards, _ = get_checkpoint_shard_files(checkpoint, str(index))
    return [config, *(Path(shard) for shard in sorted(shards))]


def weights_digest(config: TeacherConfig) -> str:
    """
    Returns the digest of all files that a teacher's features depend on: weights, configuration and image processor. It
    does not load the model.

    Raises:
        OSError: the Hub cannot be reached, and the files have not been downloaded.
        UserError: the folder contains no weights in safetensors.
    """
    checkpoint = config.checkpoint
    with explain_errors(f"The files of teacher {checkpoint} cannot be found"):
        files = _weight_files(checkpoint)
        if not is_timm(checkpoint):
            files += [path for name in PROCESSOR_NAMES if (path := _optional(checkpoint, name)) is not None]
    return digest_files(files)
