"""A name that no library can load raises an error that contains its option in the recipe."""

import pytest

from hawaii.files.sources import check_source
from hawaii.files.user_error import UserError


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 16\n"


@pytest.mark.parametrize("name", ["gpt2", "openai/clip-vit-large-patch14-336"])
def test_a_hub_id_may_be_anything(name):
    check_source("teacher", name)


@pytest.mark.parametrize("name", ["runs/easy_vqa/experts/vit", "/there/is/none", "./none", "../none"])
def test_a_missing_folder_is_an_error(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a demo may have created the first in the current directory
    with pytest.raises(UserError, match=f"There is no teacher {name}: name a folder or a hub id"):
        check_source("teacher", name)


def test_a_folder_without_the_file_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"The tokenizer .* is a folder without tokenizer_config\.json"):
        check_source("tokenizer", str(tmp_path), "tokenizer_config.json")
    (tmp_path / "tokenizer_config.json").write_text("{}")
    check_source("tokenizer", str(tmp_path), "tokenizer_config.json")


def test_a_name_with_two_slashes_is_an_error():
    with pytest.raises(UserError, match="There is no teacher a/b/c: name a folder or a hub id, which has one slash"):
        check_source("teacher", "a/b/c")


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("config.json", "{", r"/config\.json is damaged: it is not JSON"),
        ("config.json", POINTER, r"/config\.json is a Git LFS pointer"),
        ("tokenizer.json", POINTER, r"/tokenizer\.json is a Git LFS pointer"),
        ("tokenizer.model", POINTER, r"/tokenizer\.model is a Git LFS pointer"),
        ("model.safetensors", POINTER, r"/model\.safetensors is a Git LFS pointer"),
        ("model-00001-of-00002.safetensors", "half", r"/model-00001-of-00002\.safetensors is damaged or truncated"),
        ("model.safetensors.index.json", "[", r"/model\.safetensors\.index\.json is damaged: it is not JSON"),
        ("adapter_config.json", "{}", r"its adapter_config\.json contains adapters, such as a LoRA"),
        ("adapter_model.bin", "x", r"its adapter_model\.bin contains adapters, such as a LoRA"),
        ("mm_projector.bin", "x", r"its mm_projector\.bin contains LLaVA's projector"),
        (
            "non_lora_trainables.bin",
            "x",
            r"its non_lora_trainables\.bin contains the weights that LLaVA trains in addition to a LoRA",
        ),
    ],
)
def test_what_is_in_a_folder_in_place_of_a_model_is_named(tmp_path, name, content, problem):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=problem) as caught:
        check_source("vision_tower", str(tmp_path))
    assert str(tmp_path) in str(caught.value)
