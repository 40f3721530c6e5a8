"""Only safetensors are read, one tensor at a time, and errors name the damaged file."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from hawaii.files.user_error import UserError
from hawaii.modeling_hawaii.conversion import checkpoint_tensors
from hawaii.modeling_hawaii.conversion.checkpoint_tensors import INDEX, WEIGHTS, CheckpointTensors
from hawaii.tests.tiny.llava import save_clip, save_tensors


TENSORS = {
    "a": torch.arange(6.0).view(2, 3),
    "b": torch.ones(5, dtype=torch.bfloat16),
    "c": torch.zeros(7, dtype=torch.bfloat16),
    "ids": torch.arange(100),
    "d": torch.full((1,), 4.0),
}


@pytest.mark.parametrize("num_files", [1, 2])
def test_names_shapes_and_values_do_not_depend_on_the_number_of_files(tmp_path, num_files):
    save_tensors(tmp_path, TENSORS, num_files)
    tensors = CheckpointTensors(tmp_path)
    assert len(tensors.files) == num_files
    assert tensors.shapes == {name: tuple(tensor.shape) for name, tensor in TENSORS.items()}
    assert sorted(tensors.names) == sorted(TENSORS)
    read = {name: tensor.clone() for name, tensor in tensors.read(["a", "c", "d"])}
    assert read.keys() == {"a", "c", "d"}
    assert all(torch.equal(tensor, TENSORS[name]) for name, tensor in read.items())
    assert tensors.largest_file == max(path.stat().st_size for path in tmp_path.glob("*.safetensors"))


def test_the_main_type_is_the_most_frequent_floating_point_type(tmp_path):
    save_tensors(tmp_path, TENSORS)
    tensors = CheckpointTensors(tmp_path)
    assert tensors.main_dtype(TENSORS) == torch.bfloat16  # 12 values; 7 are float32, a hundred are integers
    assert tensors.main_dtype(["a", "b"]) == torch.float32


def test_pickles_are_refused_and_the_error_says_how_to_convert_them(tmp_path):
    torch.save(TENSORS, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"Pickles .* are not read because .* docs/starting_points\.md"):
        CheckpointTensors(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    save_tensors(tmp_path, TENSORS, num_files=2)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=rf"lacks model-00002-of-00002\.safetensors, which its {INDEX} names"):
        CheckpointTensors(tmp_path)


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"version https://git-lfs", lambda data: b""])
def test_a_damaged_file_is_named(tmp_path, damage):
    save_tensors(tmp_path, TENSORS)
    path = tmp_path / WEIGHTS
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"model\.safetensors is damaged or truncated"):
        CheckpointTensors(tmp_path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "it is not JSON"),
        (b"\xff\xfe", "it is not JSON"),
        (b"[]", "it is not a JSON object"),
        (b'{"metadata": {}}', "it has no weight_map"),
        (b'{"weight_map": ["a"]}', "it has no weight_map"),
    ],
)
def test_a_damaged_index_is_named(tmp_path, data, message):
    (tmp_path / INDEX).write_bytes(data)
    with pytest.raises(UserError, match=rf"{INDEX} is damaged: {message}"):
        CheckpointTensors(tmp_path)


@pytest.mark.parametrize("name", ["../secret.safetensors", "{parent}/secret.safetensors", "other/secret.safetensors"])
def test_an_index_cannot_name_a_file_in_another_folder(tmp_path, name):
    folder = tmp_path / "checkpoint"
    (folder / "other").mkdir(parents=True)
    for parent in (tmp_path, folder / "other"):
        save_file(TENSORS, parent / "secret.safetensors")
    name = name.format(parent=tmp_path)
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(UserError, match=f"names {re.escape(name)}, which is not in its folder"):
        CheckpointTensors(folder)


def test_a_tensor_in_two_files_is_named(tmp_path):
    save_tensors(tmp_path, TENSORS, num_files=2)
    second = tmp_path / "model-00002-of-00002.safetensors"
    save_file(load_file(second) | {"a": torch.zeros(2, 3)}, second)
    with pytest.raises(UserError, match=rf"contains a twice, the second time in {second.name}"):
        CheckpointTensors(tmp_path)


def test_a_file_without_tensors_is_accepted(tmp_path):
    for name, tensors in {"1.safetensors": {"a": TENSORS["a"]}, "2.safetensors": {}}.items():
        save_file(tensors, tmp_path / name)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}))
    tensors = CheckpointTensors(tmp_path)
    assert (len(tensors.files), tensors.names) == (2, ["a"])
    assert [name for name, _ in tensors.read(["a"])] == ["a"]


# Converts a checkpoint by its Hub id, offline, from the cache.
CONVERT = """
import sys
from hawaii.modeling_hawaii.conversion.clip import convert_clip
print(convert_clip("owner/clip").model.config.num_hidden_layers)
try:
    convert_clip("owner/other")
except ValueError as error:
    print(error)
"""


@pytest.mark.parametrize("num_files", [1, 2])
def test_a_repository_of_pickles_is_read_from_the_conversion_bots_pull_request(tmp_path, monkeypatch, num_files):
    # The cache layout of huggingface_hub, with two revisions.
    repository = tmp_path / "models--owner--pickled"
    for revision, snapshot in {"main": "0123", "pr/7": "4567"}.items():
        (repository / "snapshots" / snapshot).mkdir(parents=True)
        reference = repository / "refs" / ("main" if revision == "main" else f"refs/{revision}")
        reference.parent.mkdir(parents=True, exist_ok=True)
        reference.write_text(snapshot)
    torch.save(TENSORS, repository / "snapshots" / "0123" / "pytorch_model.bin")
    save_tensors(repository / "snapshots" / "4567", TENSORS, num_files)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    requested = []

    def auto_conversion(checkpoint):
        requested.append(checkpoint)
        return None, "refs/pr/7", num_files > 1

    monkeypatch.setattr(checkpoint_tensors, "auto_conversion", auto_conversion)
    tensors = CheckpointTensors("owner/pickled")
    assert requested == ["owner/pickled"]
    assert len(tensors.files) == num_files
    assert sorted(tensors.names) == sorted(TENSORS)


def test_a_repository_without_safetensors_and_pull_request_is_refused(monkeypatch):
    def auto_conversion(checkpoint):
        raise RuntimeError("no pull request")

    monkeypatch.setattr(checkpoint_tensors, "auto_conversion", auto_conversion)
    with pytest.raises(UserError, match="owner/pickled has neither"):
        CheckpointTensors("owner/pickled")


def test_a_checkpoint_in_the_cache_is_read_by_its_hub_id(tmp_path):
    # The cache layout of huggingface_hub.
    repository = tmp_path / "hub" / "models--owner--clip"
    snapshot = repository / "snapshots" / "0123456789abcdef"
    save_clip(snapshot)
    saved = CheckpointTensors(snapshot)
    tensors = {name: tensor.clone() for name, tensor in saved.read(saved.names)}
    (snapshot / WEIGHTS).unlink()
    save_tensors(snapshot, tensors, num_files=2)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name)
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    finished = subprocess.run(
        [sys.executable, "-c", CONVERT], env=environment, capture_output=True, text=True, timeout=300
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    num_layers, error = finished.stdout.splitlines()
    assert num_layers == "3"
    assert error.startswith("owner/other is no CLIP checkpoint: no folder of that name")
