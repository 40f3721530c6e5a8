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
from hawaii.tests.tiny.models import make_model
from hawaii.tests.tiny.strangers import add_code, change_json


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


def refusal(folder, **options):
    with pytest.raises(UserError) as caught:
        checkpoint_folder(folder, **options)
    return str(caught.value)


@pytest.mark.parametrize("name", ["a/b/c", "user/..", "-user/name", "user/name.git", "user/na me"])
def test_a_name_that_no_repository_can_have_is_not_a_checkpoint(name):
    assert refusal(name).startswith(f"{name} is not a checkpoint: there is no such folder, and ")


MODEL_FILES = ["processor_config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"]
MODEL_FILES += ["chat_template.jinja", "generation_config.json"]


@pytest.mark.parametrize("name", MODEL_FILES)
def test_the_error_names_a_missing_file(hub_folder, tmp_path, name):
    folder = shutil.copytree(hub_folder, tmp_path / "hub")
    (folder / name).unlink()
    assert refusal(folder) == (
        f"{folder} could not be loaded: {folder} is not a saved HAWAII: it has no {name}. Restore the file."
    )


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 16\n"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", *MODEL_FILES])
def test_a_git_lfs_pointer_is_named(hub_folder, tmp_path, name):
    folder = shutil.copytree(hub_folder, tmp_path / "hub")
    (folder / name).write_text(POINTER)
    assert refusal(folder).startswith(f"{folder} could not be loaded: {folder / name} is a Git LFS pointer")


def test_a_git_lfs_pointer_in_place_of_one_file_of_several_is_named(hub_folder, tmp_path):
    folder = shutil.copytree(hub_folder, tmp_path / "hub")
    (folder / "model.safetensors").unlink()
    make_model().save_pretrained(folder, max_shard_size="50KB")
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.write_text(POINTER)
    assert f"{shard} is a Git LFS pointer" in refusal(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "processor_config.json", "generation_config.json"])
def test_half_a_json_file_is_named(hub_folder, tmp_path, name):
    folder = shutil.copytree(hub_folder, tmp_path / "hub")
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])
    assert f"{folder / name} is damaged: it is not JSON" in refusal(folder)


@pytest.mark.parametrize("is_ours", [True, False])
def test_half_a_weight_file_is_named(hub_folder, tmp_path, is_ours):
    folder = shutil.copytree(hub_folder, tmp_path / "hub")
    if not is_ours:
        change_json(folder / "config.json", model_type="llava")
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    assert f"{folder}/model.safetensors is damaged or truncated" in refusal(folder)


def test_a_lora_alone_is_named(hub_folder, tmp_path):
    for has_config in (False, True):
        folder = tmp_path / f"lora-{has_config}"
        folder.mkdir()
        if has_config:
            shutil.copy(hub_folder / "config.json", folder)
        (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "somewhere"}')
        save_file({"base_model.model.q_proj.lora_A.weight": torch.zeros(1)}, folder / "adapter_model.safetensors")
        error = refusal(folder)
        assert f"{folder} is not a complete model: its adapter_config.json contains adapters, such as a LoRA" in error
        assert "merge_and_unload" in error


@pytest.mark.parametrize("name", ["mm_projector.bin", "model.safetensors"])
def test_a_projector_alone_is_named(tmp_path, name):
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    (tmp_path / name).write_bytes(b"weights")
    problem = "its mm_projector.bin contains LLaVA's projector"
    if name == "model.safetensors":
        save_file({"model.mm_projector.0.weight": torch.zeros(1)}, tmp_path / name)
        problem = f"{tmp_path} contains only a projector and no other weights"
    assert problem in refusal(tmp_path)


@pytest.fixture
def stranger(hub_folder, tmp_path):
    """A folder of an unknown type with code of its own."""
    folder = shutil.copytree(hub_folder, tmp_path / "stranger")
    add_code(folder, "LlavaConfig", "LlavaForConditionalGeneration")
    classes = {"AutoConfig": "strange.StrangeConfig", "AutoModelForImageTextToText": "strange.StrangeModel"}
    change_json(folder / "config.json", model_type="strange", auto_map=classes)
    change_json(folder / "processor_config.json", processor_class="LlavaProcessor")
    return folder


def test_code_of_others_is_named_and_refused_unless_it_is_trusted(stranger):
    error = refusal(stranger)
    assert f"needs code that neither transformers nor hawaii-vlm has: strange.py in the folder {stranger}." in error
    assert "--trust-remote-code" in error
    assert checkpoint_folder(stranger, trust_remote_code=True) == stranger


def test_the_repository_of_the_code_is_named(stranger):
    classes = {"AutoConfig": "evil/code--odd.Config", "AutoModelForImageTextToText": "evil/code--odd.Model"}
    change_json(stranger / "config.json", auto_map=classes)
    assert "hawaii-vlm has: odd.py in the repository evil/code of the Hub." in refusal(stranger)


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("processor_config.json", "processor_class"),
        ("preprocessor_config.json", "image_processor_type"),
        ("tokenizer_config.json", "tokenizer_class"),
    ],
)
def test_code_of_others_in_the_processor_is_refused(hub_folder, tmp_path, name, field):
    folder = shutil.copytree(hub_folder, tmp_path / "hub")
    change_json(folder / "config.json", model_type="llava")
    assert checkpoint_folder(folder) == folder
    change_json(folder / name, auto_map={"AutoTokenizer": ["strange.Tokenizer", None]}, **{field: "Strange"})
    assert f"strange.py in the folder {folder}" in refusal(folder)
    assert checkpoint_folder(folder, trust_remote_code=True) == folder


def test_a_model_that_transformers_has_needs_no_code(hub_folder, tmp_path):
    folder = shutil.copytree(hub_folder, tmp_path / "hub")
    classes = {"AutoConfig": "strange.Config", "AutoModelForImageTextToText": "strange.Model"}
    change_json(folder / "config.json", model_type="llava", auto_map=classes)
    assert checkpoint_folder(folder) == folder
