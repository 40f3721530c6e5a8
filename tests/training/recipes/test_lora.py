"""The options of a stage with a LoRA or a quantized language model."""

import sys

import pytest
import yaml

from hawaii.files.user_error import UserError
from hawaii.tests.tiny.models import VISION
from hawaii.tests.tiny.training import TEXT
from hawaii.training.recipes.recipe import read_recipe


def read(folder, **options):
    recipe = {
        "output_dir": "run",
        "tokenizer": "x",
        "vision_config": VISION,
        "text_config": TEXT,
        "teachers": "clip",
        "data_path": "x.json",
        "image_folder": "x",
        "report_to": "none",
        "stages": {"finetune": options},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (stage,) = read_recipe(folder / "recipe.yaml", use_cpu=True).stages.values()
    return stage


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora": {"rank": 8}}, "stage finetune, lora: there is no field 'rank'"),
        ({"lora": {"lora_alfa": 8}}, "there is no field 'lora_alfa'. Did you mean lora_alpha?"),
        ({"lora": {"r": "eight"}}, "lora: r is 'eight'; it must be a whole number."),
        ({"lora": {"r": 0}}, "lora: r is 0; it must be at least 1."),
        ({"lora": {"lora_dropout": -0.1}}, "lora: lora_dropout is -0.1; it must be at least 0 and below 1."),
        ({"lora": {"lora_dropout": "some"}}, "lora: lora_dropout is 'some'; it must be a number."),
        ({"lora": {"rank_pattern": {"q_proj": 0}}}, "lora, rank_pattern of q_proj: r is 0; it must be at least 1."),
        ({"lora": {"alpha_pattern": 8}}, "lora: alpha_pattern is 8; it must be a mapping."),
        ({"lora": {"layers_pattern": "h"}}, "lora: PEFT refuses it: `layers_pattern` cannot be used"),
        ({"lora": {"inference_mode": True}}, "lora: inference_mode is set by training; leave it out."),
        (
            {"lora": {"modules_to_save": ["x"]}},
            "lora: modules_to_save is not supported, because all weights of the parts in trainable",
        ),
        ({"lora": {"init_lora_weights": "pissa"}}, "init_lora_weights is 'pissa', which changes the weights"),
        ({"lora": 8}, "lora is 8; it must be a mapping."),
        ({"lora": {}, "trainable": ["projector"]}, "there is a lora, but trainable is ['projector']: add language"),
        ({"quantization": "4bit"}, "quantization 4bit freezes the language model, but it is in trainable"),
        ({"quantization": "3bit"}, "quantization is '3bit'; it must be one of 4bit, 8bit."),
        ({"merge": False}, "merge is false, but there is no lora to keep apart"),
        ({"lora": {}, "dtype": "bfloat16"}, "dtype is bfloat16, which with lora or quantization is the precision"),
    ],
)
def test_a_wrong_option_is_refused(tmp_path, options, message):
    with pytest.raises(UserError) as error:
        read(tmp_path, **options)
    assert message in str(error.value)


def test_an_encoder_alone_has_no_lora(tmp_path):
    recipe = {
        "output_dir": "run",
        "vision_config": VISION,
        "teachers": "clip",
        "image_folder": "x",
        "stages": {"distill": {"lora": {}}},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(UserError, match="lora is {}, but the recipe's first stage names no language model"):
        read_recipe(tmp_path / "recipe.yaml", use_cpu=True)


@pytest.mark.parametrize(
    "lora",
    [
        {},
        {"r": 128, "lora_alpha": 256, "lora_dropout": 0.05, "use_rslora": True},
        {"target_modules": ["q_proj"], "layers_to_transform": [0], "rank_pattern": {"q_proj": 4}},
        {"init_lora_weights": "gaussian", "use_dora": True, "bias": "lora_only", "modules_to_save": None},
    ],
)
def test_fields_of_peft_are_taken_as_they_are(tmp_path, lora):
    assert read(tmp_path, lora=lora).model.lora == lora


def test_whole_numbers_and_numbers_in_quotes_are_converted(tmp_path):
    lora = read(tmp_path, lora={"r": 8.0, "lora_dropout": "5e-2", "alpha_pattern": {"q_proj": "1.5"}}).model.lora
    assert lora == {"r": 8, "lora_dropout": 0.05, "alpha_pattern": {"q_proj": 1.5}}
    assert type(lora["r"]) is int


def test_a_missing_bitsandbytes_is_named_with_its_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r'run `pip install "hawaii-vlm\[quantization\]"`'):
        read(tmp_path, quantization="8bit", lora={})
