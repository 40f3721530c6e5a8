"""Entry point of the group `lmms_eval.models`. lmms-eval calls it at every start, so it does not import torch."""


def hawaii():
    """Returns the manifest with which `python -m lmms_eval --model hawaii` finds the model class."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="hawaii", chat_class_path=f"{__package__}.model.Hawaii")
