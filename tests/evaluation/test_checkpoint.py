"""Tests of finding and checking checkpoints."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText, ViTConfig, ViTModel

from hawaii import __main__ as command
from hawaii.evaluation.checkpoint import checkpoint_folder, count_parameters
from hawaii.files.user_error import UserError
from hawaii.tests.tiny.encoders import save_encoder_folder


def test_a_published_folder_is_a_checkpoint(hub_folder):
    assert checkpoint_folder(str(hub_folder)) == hub_folder


def test_the_error_names_a_missing_folder(tmp_path):
    with pytest.raises(ValueError, match="nowhere is not a checkpoint: there is no such folder"):
        checkpoint_folder(tmp_path / "nowhere")


def test_the_error_for_a_run_folder_suggests_the_published_folder(hub_folder, tmp_path):
    shutil.copytree(hub_folder, tmp_path / "hub")
    with pytest.raises(ValueError, match=r"it has no config.json. Did you mean .*hub\?"):
        checkpoint_folder(tmp_path)


def test_a_configuration_without_weights_is_not_a_checkpoint(hub_folder, tmp_path):
    shutil.copy(hub_folder / "config.json", tmp_path)
    with pytest.raises(ValueError, match="it has no model.safetensors"):
        checkpoint_folder(tmp_path)


def test_a_model_without_text_output_is_refused(tmp_path):
    ViTModel(
        ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    ).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="contains a vit, which AutoModelForImageTextToText cannot load"):
        checkpoint_folder(tmp_path)


def test_the_error_for_an_encoder_explains_its_use(tmp_path, capsys):
    save_encoder_folder(tmp_path / "hub")
    problem = "hub contains a hawaii_vision, .* cannot answer .* images. It is an encoder .* as the vision_tower"
    with pytest.raises(ValueError, match=problem):
        checkpoint_folder(tmp_path / "hub")
    ask = ["--image", "image.png", "--question", "what ?"]
    for words in (["chat", *ask], ["evaluate", "--tasks", "easy_vqa", "--output_dir", str(tmp_path)]):
        assert command.main([words[0], str(tmp_path / "hub"), *words[1:]]) == 2
        assert "it cannot answer questions about images" in capsys.readouterr().err


def test_a_model_of_transformers_is_a_checkpoint(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert checkpoint_folder(tmp_path) == tmp_path


def test_a_name_that_is_not_on_the_hub_is_not_a_checkpoint():
    with pytest.raises(ValueError, match="no-one/nothing is not a checkpoint"):
        checkpoint_folder("no-one/nothing")


def test_all_parameters_are_counted(hub_folder):
    model = AutoModelForImageTextToText.from_pretrained(hub_folder, trust_remote_code=True)
    assert count_parameters(hub_folder) == model.num_parameters()


def test_the_parameters_of_all_shards_are_counted(tmp_path):
    save_file({"a": torch.zeros(2, 3)}, tmp_path / "one.safetensors", metadata={"format": "pt"})
    save_file({"b": torch.zeros(4), "c": torch.zeros(())}, tmp_path / "two.safetensors")
    weight_map = {"a": "one.safetensors", "b": "two.safetensors", "c": "two.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert count_parameters(tmp_path) == 6 + 4 + 1


@pytest.mark.parametrize("content", ["{", "[]"])
def test_the_error_names_a_damaged_configuration(hub_folder, tmp_path, content):
    folder = shutil.copytree(hub_folder, tmp_path / "hub")
    (folder / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"hub/config\.json is damaged: it is not "):
        checkpoint_folder(folder)


@pytest.mark.parametrize("data", [b"", b"version 1", b"\xff" * 16])
def test_a_damaged_file_is_named(tmp_path, data):
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(UserError, match=r"model\.safetensors is damaged or truncated"):
        count_parameters(tmp_path)
