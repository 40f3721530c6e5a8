"""A folder is a saved HAWAII if it has every file and every tensor; its weights are finite or refused by name."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.utils import logging

from hawaii.files.user_error import UserError
from hawaii.modeling_hawaii.conversion import saved_model as module
from hawaii.modeling_hawaii.conversion.saved_model import check_saved_model, check_weights_are_finite
from hawaii.tests.tiny.encoders import save_encoder_folder
from hawaii.tests.tiny.models import make_model


@pytest.fixture
def folder(hub_folder, tmp_path):
    return shutil.copytree(hub_folder, tmp_path / "hub")


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_complete_folder_is_accepted_and_settings_of_transformers_stay(folder, tmp_path):
    before = (logging.get_verbosity(), logging.is_progress_bar_enabled())
    assert check_saved_model(folder) == []
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    save_encoder_folder(tmp_path / "encoder")
    assert check_saved_model(tmp_path / "encoder") == []


@pytest.mark.parametrize("is_tied", [True, False])
def test_only_a_tied_head_may_be_left_out(folder, is_tied):
    make_model(text={"tie_word_embeddings": is_tied}).save_pretrained(folder)
    change_weights(folder, lambda weights: weights.pop("lm_head.weight", None))
    if is_tied:
        assert check_saved_model(folder) == []
    else:
        with pytest.raises(
            UserError, match=r"its weights \(model\.safetensors\) lack 1 tensors, such as lm_head\.weight"
        ):
            check_saved_model(folder)


def test_tensors_of_another_shape_are_named(folder):
    change_weights(folder, lambda weights: weights.update({"lm_head.weight": torch.zeros(3, 32)}))
    with pytest.raises(UserError, match=r"lm_head\.weight has the shape \[3, 32\] in its weights"):
        check_saved_model(folder)


def test_other_tensors_are_returned(folder):
    change_weights(folder, lambda weights: weights.update({"teacher.weight": torch.zeros(1)}))
    assert check_saved_model(folder) == ["teacher.weight"]


@pytest.mark.parametrize("content", ['{"model_type": "llava"}', "{}", '{"model_type": ["hawaii"]}'])
def test_another_model_is_named(folder, content):
    (folder / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"hub is not a saved HAWAII: its config\.json describes a model of type"):
        check_saved_model(folder)


def test_a_configuration_that_cannot_be_built_is_one_sentence(folder):
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"adapter_placement": "ffn"', '"adapter_placement": "no"'))
    with pytest.raises(UserError, match="hub could not be loaded: adapter_placement is 'no'"):
        check_saved_model(folder)


def test_under_zero_3_no_model_is_built(folder, monkeypatch):
    monkeypatch.setattr(module, "is_deepspeed_zero3_enabled", lambda: True)
    monkeypatch.setattr(module, "_load_without_memory", lambda *args: pytest.fail("a model was built"))
    assert check_saved_model(folder) == []
    (folder / "processor_config.json").unlink()
    with pytest.raises(UserError, match="it has no processor_config.json"):
        check_saved_model(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_a_value_that_is_not_finite_is_named(tmp_path, dtype):
    tensors = {"first": torch.ones(3).to(dtype), "count": torch.ones(2, dtype=torch.int64)}
    save_file(tensors, tmp_path / "model.safetensors")
    check_weights_are_finite(tmp_path)
    save_file({**tensors, "second": torch.tensor([1, float("nan")]).to(dtype)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors: second has values that are not finite"):
        check_weights_are_finite(tmp_path)
