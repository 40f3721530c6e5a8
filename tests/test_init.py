"""The public names of the package, and the registration with transformers' Auto classes."""

import configparser
from pathlib import Path

import pytest
import transformers
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

import hawaii


def test_every_public_name_is_importable():
    assert all(name in dir(hawaii) and getattr(hawaii, name) for name in hawaii.__all__)
    setup = configparser.ConfigParser()
    setup.read(Path(hawaii.__file__).with_name("setup.cfg"))
    assert hawaii.__version__ == setup["metadata"]["version"]
    with pytest.raises(AttributeError, match="no_such_name"):
        getattr(hawaii, "no_such_name")  # noqa: B009


def test_the_auto_classes_map_to_the_model():
    auto, generation = transformers.AutoModel, transformers.AutoModelForImageTextToText
    assert auto._model_mapping[hawaii.HawaiiConfig] is hawaii.HawaiiModel
    assert auto._model_mapping[hawaii.HawaiiVisionConfig] is hawaii.HawaiiVisionModel
    assert generation._model_mapping[hawaii.HawaiiConfig] is hawaii.HawaiiForConditionalGeneration
    assert PROCESSOR_MAPPING[hawaii.HawaiiConfig] is hawaii.HawaiiProcessor
    assert type(transformers.AutoConfig.for_model("hawaii")) is hawaii.HawaiiConfig


def test_auto_model_for_vision2seq_is_its_successor():
    assert hawaii.AutoModelForVision2Seq is transformers.AutoModelForImageTextToText
