"""
HAWAII: a vision-language model whose one encoder is distilled from several, through a mixture of LoRA adapters.

The names below are imported on first use, because importing transformers takes seconds. The first use of any of them
also registers the model with transformers' Auto classes, so that its checkpoints load without `trust_remote_code`.
"""

from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from transformers import AutoModelForImageTextToText as AutoModelForVision2Seq

    from .configuration.configuration_hawaii import HawaiiConfig, HawaiiVisionConfig
    from .modeling_hawaii.modeling_hawaii import HawaiiForConditionalGeneration, HawaiiModel
    from .modeling_hawaii.vision_hawaii import HawaiiVisionModel
    from .processing.processing_hawaii import HawaiiProcessor

    __version__: str


__all__ = [
    "AutoModelForVision2Seq",
    "HawaiiConfig",
    "HawaiiForConditionalGeneration",
    "HawaiiModel",
    "HawaiiProcessor",
    "HawaiiVisionConfig",
    "HawaiiVisionModel",
]


def _import_public_names() -> dict[str, type]:
    """Imports every public name and registers the classes with transformers' Auto classes."""
    import transformers

    from .configuration.configuration_hawaii import HawaiiConfig, HawaiiVisionConfig
    from .modeling_hawaii.modeling_hawaii import HawaiiForConditionalGeneration, HawaiiModel
    from .modeling_hawaii.vision_hawaii import HawaiiVisionModel
    from .processing.image_processing_hawaii import HawaiiImageProcessor
    from .processing.processing_hawaii import HawaiiProcessor

    for config in (HawaiiConfig, HawaiiVisionConfig):
        transformers.AutoConfig.register(config.model_type, config, exist_ok=True)
    transformers.AutoModel.register(HawaiiConfig, HawaiiModel, exist_ok=True)
    transformers.AutoModel.register(HawaiiVisionConfig, HawaiiVisionModel, exist_ok=True)
    transformers.AutoModelForImageTextToText.register(HawaiiConfig, HawaiiForConditionalGeneration, exist_ok=True)
    transformers.AutoImageProcessor.register(HawaiiConfig, HawaiiImageProcessor, exist_ok=True)
    transformers.AutoProcessor.register(HawaiiConfig, HawaiiProcessor, exist_ok=True)

    AutoModelForVision2Seq = transformers.AutoModelForImageTextToText  # its successor in transformers 5
    imported = locals()
    return {name: imported[name] for name in __all__}


def __getattr__(name: str):
    if name == "__version__":
        from importlib.metadata import version

        return version("hawaii-vlm")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals().update(_import_public_names())
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
