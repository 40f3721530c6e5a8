"""An expert learns its own labels of the images and is saved as a teacher that loads unchanged."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModel

from hawaii.example_data.easy_vqa.experts import EXPERTS
from hawaii.example_data.easy_vqa.prepare import prepare_easy_vqa
from hawaii.example_data.emoji_vqa.prepare import prepare_emoji_vqa
from hawaii.example_data.experts import (
    MAX_SHIFT,
    ExpertClassifier,
    augment,
    held_out,
    normalize,
    patch_weights,
    prepare_experts,
    train_expert,
)
from hawaii.files.user_error import UserError


NAMES = [expert.name for expert in EXPERTS]


@pytest.fixture
def images():
    return torch.randint(0, 256, (20, 64, 64, 3), dtype=torch.uint8)


@pytest.fixture
def labels():
    return {expert.labelling: torch.arange(20) % 3 for expert in EXPERTS}


@pytest.mark.parametrize("expert", [replace(expert, batch_size=4) for expert in EXPERTS], ids=NAMES)
def test_a_saved_expert_loads_with_equal_features(expert, images, labels, tmp_path):
    model, _ = train_expert(expert, images, labels[expert.labelling], num_steps=2)
    prepare_experts([expert], images, labels, tmp_path, num_steps=2)

    folder = tmp_path / expert.name
    loaded, loading = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert not any("head" in name for name, _ in loaded.named_parameters())
    assert (folder / "model.safetensors").is_file()
    pixel_values = normalize(images[:2])
    with torch.no_grad():
        features, expected = loaded(pixel_values).last_hidden_state, model(pixel_values).last_hidden_state
    torch.testing.assert_close(features, expected, rtol=0, atol=0)
    assert expected.shape in [(2, 96, 8, 8), (2, 1 + 8 * 8, 96)]

    processor = AutoImageProcessor.from_pretrained(folder)
    torch.testing.assert_close(processor(list(images[:2].numpy()), return_tensors="pt")["pixel_values"], pixel_values)


def test_the_report_describes_the_expert(images, labels, tmp_path):
    prepare_experts([replace(EXPERTS[0], batch_size=4)], images, labels, tmp_path, num_steps=1)
    report = json.loads((tmp_path / "resnet" / "expert.json").read_text())
    assert (report["labelling"], report["architecture"], report["num_steps"]) == ("shape", "ResNetModel", 1)
    assert 0 <= report["validation_accuracy"] <= 1


def test_only_missing_experts_and_experts_with_other_settings_or_data_are_trained(images, labels, tmp_path, capsys):
    experts = [replace(expert, batch_size=4) for expert in EXPERTS[:2]]
    prepare_experts(experts[:1], images, labels, tmp_path, num_steps=1)
    written = (tmp_path / "resnet" / "model.safetensors").stat().st_mtime_ns
    (tmp_path / "vit.incomplete").mkdir()  # left by a killed run
    capsys.readouterr()

    prepare_experts(experts, images, labels, tmp_path, num_steps=1)
    assert "Expert resnet already exists" in capsys.readouterr().out
    assert (tmp_path / "resnet" / "model.safetensors").stat().st_mtime_ns == written
    assert sorted(path.name for path in tmp_path.iterdir()) == ["resnet", "vit"]
    files = {"config.json", "expert.json", "model.safetensors", "preprocessor_config.json"}
    assert {path.name for path in (tmp_path / "vit").iterdir()} == files

    prepare_experts(experts[:1], images, labels, tmp_path, num_steps=2)
    assert json.loads((tmp_path / "resnet" / "expert.json").read_text())["num_steps"] == 2

    other_labels = {**labels, EXPERTS[0].labelling: labels[EXPERTS[0].labelling].flip(0)}
    for others in ((255 - images, labels), (255 - images, other_labels)):
        capsys.readouterr()
        prepare_experts(experts[:1], *others, tmp_path, num_steps=2)
        assert "already exists" not in capsys.readouterr().out


def test_an_expert_whose_training_fails_leaves_no_folder(images, labels, tmp_path):
    broken = replace(EXPERTS[0], batch_size=4, labelling="size")
    with pytest.raises(KeyError):
        prepare_experts([broken], images, labels, tmp_path, num_steps=1)
    assert not (tmp_path / "resnet").exists()


def test_training_does_not_change_the_random_state(images, labels):
    state = torch.get_rng_state()
    train_expert(replace(EXPERTS[0], batch_size=4), images, labels["shape"], num_steps=1)
    assert torch.equal(torch.get_rng_state(), state)


def test_unknown_labels_and_held_out_images_do_not_change_an_expert(images, labels):
    expert = replace(EXPERTS[0], batch_size=4)
    known = labels["shape"].clone()
    known[:5] = -1
    changed = images.clone()
    changed[:5] = 0
    changed[held_out(20)] = 255
    first, _ = train_expert(expert, images, known, num_steps=2)
    second, _ = train_expert(expert, changed, known, num_steps=2)
    with torch.no_grad():
        pixel_values = normalize(images)
        assert torch.equal(first(pixel_values).last_hidden_state, second(pixel_values).last_hidden_state)


def test_patches_are_classified_one_by_one_in_images_that_are_not_shifted(monkeypatch):
    # Each image has one bright patch of 8 pixels; a label is whether a patch is bright.
    patches = torch.eye(64, dtype=torch.uint8).view(64, 8, 8)
    images = patches.mul(255).repeat_interleave(8, dim=1).repeat_interleave(8, dim=2).unsqueeze(-1).repeat(1, 1, 1, 3)
    labels = patches.flatten(1).long()
    monkeypatch.setattr("hawaii.example_data.experts.augment", None)
    labels[:, 0] = -1  # Images are learned from if only some of their patches are known.
    _, accuracy = train_expert(replace(EXPERTS[1], batch_size=16), images, labels, num_steps=30)
    assert accuracy > 0.99


def test_labels_are_weighted_by_the_inverse_square_root_of_their_frequency():
    labels = torch.tensor([[0, 0, 0, 0], [1, 3, -1, -1]])
    torch.testing.assert_close(patch_weights(labels), torch.tensor([0.5, 1, 1, 1]))


def test_the_last_tenth_is_held_out():
    assert held_out(20).nonzero().flatten().tolist() == [18, 19]
    assert held_out(3).tolist() == [False, False, True]


def test_augmented_images_are_shifted_or_mirrored():
    images = torch.zeros(50, 64, 64, 3, dtype=torch.uint8)
    images[:, 20, 40] = torch.tensor([1, 2, 3], dtype=torch.uint8)
    views = augment(images)
    spots = views[..., 0].nonzero()
    assert len(spots) == 50 and views[views[..., 0] == 1].unique(dim=0).tolist() == [[1, 2, 3]]
    assert (spots[:, 1] - 20).abs().max() <= MAX_SHIFT
    straight, mirrored = (spots[:, 2] - 40).abs() <= MAX_SHIFT, (spots[:, 2] - 23).abs() <= MAX_SHIFT
    assert straight.any() and mirrored.any() and (straight | mirrored).all()


def test_images_are_augmented_only_in_training_and_without_patch_labels(images):
    expert = AutoModel.from_config(
        AutoConfig.for_model("vit", image_size=64, hidden_size=12, num_attention_heads=2, num_hidden_layers=1)
    )
    model, labels = ExpertClassifier(expert, num_labels=3), torch.arange(20) % 3

    def is_augmented(labels):
        return not torch.equal(model(images, labels)["loss"], model(images, labels)["loss"])

    assert is_augmented(labels)
    assert not is_augmented(labels[:, None].expand(-1, 16))
    model.eval()
    assert not is_augmented(labels)


def test_fewer_steps_than_one_are_refused_before_anything_is_written(tmp_path):
    for prepare in (prepare_easy_vqa, prepare_emoji_vqa):
        with pytest.raises(UserError, match="--expert_steps is 0, but must be at least 1"):
            prepare(tmp_path / "run", expert_steps=0)
    assert not (tmp_path / "run").exists()
