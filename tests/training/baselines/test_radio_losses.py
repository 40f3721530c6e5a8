"""The loss of RADIO is 0.9 (1 - cosine) + 0.1 smooth-L1, averaged over tokens."""

import math

import pytest
import torch

from hawaii.training.baselines.radio_losses import radio_loss


def naive_radio_loss(predicted, features):
    """The loss of one image, computed with Python numbers."""
    total = 0.0
    for token, target in zip(predicted, features):
        cosine = sum(p * f for p, f in zip(token, target)) / math.sqrt(
            sum(p * p for p in token) * sum(f * f for f in target)
        )
        distances = [abs(p - f) for p, f in zip(token, target)]
        smooth_l1 = sum(0.5 * d * d if d < 1 else d - 0.5 for d in distances) / len(distances)
        total += 0.9 * (1 - cosine) + 0.1 * smooth_l1
    return total / len(predicted)


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_the_loss_is_the_formula(scale):
    predicted, features = scale * torch.randn(3, 6, 5), torch.randn(3, 6, 5)
    expected = [naive_radio_loss(*rows) for rows in zip(predicted.double().tolist(), features.double().tolist())]
    loss = radio_loss(predicted, features)
    torch.testing.assert_close(loss.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-7)


def test_two_tokens_by_hand():
    # The first is exact; the second is orthogonal, with errors of 2 and 1: smooth-L1 of 1.5 and 0.5.
    predicted = torch.tensor([[[1.0, 1.0], [2.0, 0.0]]])
    features = torch.tensor([[[1.0, 1.0], [0.0, 1.0]]])
    torch.testing.assert_close(radio_loss(predicted, features), torch.tensor([(0.9 + 0.1 * 1.0) / 2]))


def test_the_loss_is_computed_in_float32():
    predicted, features = torch.randn(2, 6, 8).bfloat16(), torch.randn(2, 6, 8).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = radio_loss(predicted, features)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, radio_loss(predicted.float(), features.float()))


def test_the_gradient_at_a_zero_token_is_finite():
    predicted = torch.zeros(1, 2, 4, requires_grad=True)
    radio_loss(predicted, torch.randn(1, 2, 4)).sum().backward()
    assert predicted.grad.isfinite().all()
