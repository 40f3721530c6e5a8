"""The experts of EmojiVQA learn a label for each patch of their feature map."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModel

from hawaii.example_data.emoji_vqa.canvases import Canvas, Placement, Writing
from hawaii.example_data.emoji_vqa.concepts import Concept
from hawaii.example_data.emoji_vqa.experts import CLIP_EXPERTS, EXPERTS, GRIDS, labellings
from hawaii.example_data.experts import prepare_experts


CONCEPTS = [
    Concept("fox", "1", "animals", "mammal"),
    Concept("lion", "2", "animals", "mammal"),
    Concept("egg", "3", "food", "prepared"),
]


@pytest.fixture
def labels():
    """Labels of a lion at the top left, an egg at the bottom right and the word fox below the lion, and of a fox."""
    both = Canvas(
        "noto",
        (0, 0, 0),
        (Placement("lion", 0, 0, 24, 24), Placement("egg", 32, 32, 32, 32)),
        Writing(Placement("fox", 1, 43, 25, 12), 14, (0, 0, 0)),
    )
    alone = Canvas("noto", (0, 0, 0), (Placement("fox", 20, 20, 24, 24),), None)
    return labellings([both, alone], CONCEPTS)


def test_the_label_of_a_patch_is_the_concept_at_its_center(labels):
    concept = labels["concept"].view(2, 8, 8)
    expected = torch.zeros(8, 8, dtype=torch.long)
    expected[:3, :3], expected[4:, 4:] = 2, 3
    assert torch.equal(concept[0], expected)
    # The centers 20, 28 and 36 are at least 20 and below 44.
    expected = torch.zeros(8, 8, dtype=torch.long)
    expected[2:5, 2:5] = 1
    assert torch.equal(concept[1], expected)


def test_subgroups_are_shared_and_have_fewer_patches(labels):
    subgroup = labels["subgroup"].view(2, 4, 4)
    assert subgroup[0].tolist() == [[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 2, 2], [0, 0, 2, 2]]
    assert subgroup[1].tolist() == [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]


def test_letters_have_different_labels_and_all_drawings_the_same(labels):
    letter = labels["letter"].view(2, 8, 8)
    assert letter[1].unique().tolist() == [0, 1]
    for row in (5, 6):
        assert ["abcdefghijklmnopqrstuvwxyz"[number - 2] for number in letter[0, row, :3]] == ["f", "o", "x"]
    assert (letter[0] > 1).sum() == 6


def test_mirrored_labels_are_those_of_the_other_side(labels):
    mirrored = labels["mirrored"].view(2, 4, 4)
    assert mirrored[0].tolist() == [[0, 0, 0, 1], [0, 0, 0, 0], [2, 2, 0, 0], [2, 2, 0, 0]]
    assert torch.equal(mirrored.flip(2).flatten(1), labels["subgroup"])


@pytest.mark.parametrize("expert", [*EXPERTS, *CLIP_EXPERTS], ids=lambda expert: expert.name)
def test_an_experts_feature_map_has_the_labelled_patches(expert, labels, tmp_path):
    images = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    labels = {name: label.clamp(max=2) for name, label in labels.items()}
    prepare_experts([replace(expert, batch_size=1)], images, labels, tmp_path, num_steps=1)
    model = AutoModel.from_pretrained(tmp_path / expert.name)
    features = model(torch.zeros(1, 3, 64, 64)).last_hidden_state
    grid = GRIDS[expert.labelling]
    assert features.shape[2:] == (grid, grid) if features.ndim == 4 else features.shape[1] == 1 + grid * grid
    assert labels[expert.labelling].shape == (2, grid * grid)


def test_the_experts_have_different_architectures_and_labels():
    assert len({expert.config["model_type"] for expert in EXPERTS}) == 3
    assert {expert.labelling for expert in EXPERTS} | {CLIP_EXPERTS[-1].labelling} == set(GRIDS)
    assert len({expert.config["model_type"] for expert in CLIP_EXPERTS[:2]}) == 2
