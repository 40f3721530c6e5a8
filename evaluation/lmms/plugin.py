"""The entry point of group `lmms_eval.models`, which lmms-eval calls each time it starts: it imports no torch."""


def hawaii():
    """Returns the manifest by which `python -m lmms_eval --model hawaii` finds the model classes."""
    from lmms_eval.models.registry_v2 import ModelManifest

    module = __name__.replace("plugin", "model")
    return ModelManifest(
        model_id="hawaii", simple_class_path=f"{module}.HawaiiSimple", chat_class_path=f"{module}.Hawaii"
    )
