"""Loads a checkpoint to answer questions with."""

from typing import Any

from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from ... import HawaiiConfig, HawaiiForConditionalGeneration, HawaiiProcessor


def load_checkpoint(
    source: str, trust_remote_code: bool = False, revision: str = "main", **options
) -> tuple[Any, Any]:
    """
    Loads a model and its processor. A checkpoint of this package runs the installed classes, whatever code it contains
    or names.

    Args:
        source (`str`):
            A local folder or a repository on the Hub.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run the code of another checkpoint.
        revision (`str`, *optional*, defaults to `"main"`):
            Branch, tag or commit on the Hub.
        options:
            Further options of the model's `from_pretrained`.

    Raises:
        ValueError: the checkpoint needs its own code and `trust_remote_code` is `False`.
    """
    config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
    model_class, processor_class = AutoModelForImageTextToText, AutoProcessor
    if isinstance(config, HawaiiConfig):
        model_class, processor_class, trust_remote_code = HawaiiForConditionalGeneration, HawaiiProcessor, False
    # Without the option transformers would ask on the terminal.
    model = model_class.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code, **options)
    return model, processor_class.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
