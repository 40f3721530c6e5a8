"""Accuracies count every known label once, and training keeps no files."""

import numpy as np
import pytest
import torch
from torch import nn
from transformers import EvalPrediction

from hawaii.example_data.training import measure_accuracy, train


class Threshold(nn.Module):
    """Predicts label 1 for inputs above a threshold that is learned."""

    def __init__(self):
        super().__init__()
        self.threshold = nn.Parameter(torch.tensor(0.0))

    def forward(self, inputs, labels):
        logits = torch.stack([self.threshold.expand_as(inputs), inputs], dim=-1)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


@pytest.fixture
def samples():
    """The numbers from 0 to 9, those from 5 with label 1."""
    return [{"inputs": torch.tensor(float(index)), "labels": index // 5} for index in range(10)]


def test_accuracy_is_the_share_of_known_labels():
    labels, predictions = np.array([[1, 1], [0, 1], [-100, -1]]), np.array([[1, 0], [0, 1], [-100, 1]])
    assert measure_accuracy(EvalPrediction(predictions, labels)) == {"accuracy": 0.75}
    assert measure_accuracy(EvalPrediction(predictions[2:], labels[2:])) == {"accuracy": 0.0}


def test_a_trained_model_is_measured_on_other_samples_and_left_in_eval_mode(samples, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model = Threshold()
    settings = {"learning_rate": 0.2, "per_device_train_batch_size": 10, "seed": 0}
    accuracy = train(model, samples, samples[2:8], 60, settings, lambda logits, labels: logits.argmax(dim=-1))
    assert 4 < model.threshold < 5 and accuracy == 1
    assert not model.training and not list(tmp_path.iterdir())


def test_accuracy_without_held_out_samples_is_zero(samples):
    assert train(Threshold(), samples, [], 1, {}, lambda logits, labels: logits.argmax(dim=-1)) == 0
