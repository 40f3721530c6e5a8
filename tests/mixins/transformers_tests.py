"""
transformers' own test mixins, from the source distribution that `make` unpacks next to the environment.

The distribution lacks two of the modules that they import (the tests of generation and of exporters) and a list of
files for the Hub's continuous integration; empty ones take their place.
"""

import importlib
import sys
import types
from pathlib import Path

from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, MODEL_MAPPING_NAMES


FOLDER = Path(__file__).parents[2] / ".venv" / "transformers-tests"
PACKAGE = "transformers_tests"
# In place of the images that the tests download.
IMAGE = str(Path(__file__).parents[2] / "docs" / "evidence" / "easy_vqa.png")


def _module(name: str, **content) -> None:
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(content)


def import_mixin(module: str, name: str) -> type:
    """
    Imports a class of transformers' tests.

    Args:
        module (`str`):
            Name of its file, such as `test_modeling_common`.
        name (`str`):
            Name of the class.
    """
    if not (FOLDER / f"{module}.py").is_file():
        raise ModuleNotFoundError(f"{FOLDER} has no {module}.py: `make .venv` unpacks transformers' tests there.")
    if PACKAGE not in sys.modules:
        _module(PACKAGE, __path__=[str(FOLDER)])
        _module(f"{PACKAGE}.exporters")
        _module(f"{PACKAGE}.exporters.test_export", ExportTesterMixin=type("ExportTesterMixin", (), {}))
        _module(f"{PACKAGE}.generation")
        _module(f"{PACKAGE}.generation.test_utils", GenerationTesterMixin=type("GenerationTesterMixin", (), {}))
        _module("fetch_hub_objects_for_ci", url_to_local_path=lambda url: IMAGE)
        # The tests find out from these lists which classes have a loss, as for the models in transformers.
        MODEL_MAPPING_NAMES["hawaii"], MODEL_MAPPING_NAMES["hawaii_vision"] = "HawaiiModel", "HawaiiVisionModel"
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES["hawaii"] = "HawaiiForConditionalGeneration"
    return getattr(importlib.import_module(f"{PACKAGE}.{module}"), name)
