"""The losses equal MoVE-KD's formulas, including its peculiarities, and the repairs correct them."""

import math

import pytest
import torch

from hawaii.tests.naive import assert_equals_naive, naive_mean, naive_softmax
from hawaii.training.baselines.move_kd_losses import (
    move_kd_loss,
    pooled_balance_loss,
    renormalized_attention,
    softmax_of_attention,
    weigh_teachers,
)


@pytest.fixture
def projected():
    return torch.randn(3, 4, 6, 5)  # images, teachers, tokens, width


@pytest.fixture
def class_attention():
    return torch.randn(3, 10).softmax(dim=-1)[:, 4:]  # attention of the class token to 6 of 10 tokens


def test_token_weights_are_a_softmax_of_the_attention(class_attention):
    expected = [naive_softmax(row) for row in class_attention.double().tolist()]
    assert_equals_naive(softmax_of_attention(class_attention), expected)


def test_the_softmax_of_attention_is_nearly_uniform_and_the_repair_is_not():
    attention = torch.tensor([[0.9, 0.02, 0.02, 0.02]])
    quirk, repair = softmax_of_attention(attention)[0], renormalized_attention(attention)[0]
    assert quirk.max() / quirk.min() == pytest.approx(math.exp(0.88), rel=1e-5)
    assert repair.max() / repair.min() == pytest.approx(45, rel=1e-5)


def test_the_repaired_weights_are_the_attention_rescaled_to_sum_to_one(class_attention):
    expected = [[value / sum(row) for value in row] for row in class_attention.double().tolist()]
    assert_equals_naive(renormalized_attention(class_attention), expected)


@pytest.mark.parametrize("anchor", [0, 1, 3])
def test_the_anchor_has_weight_0_8_and_the_others_share_0_2_by_a_softmax(projected, anchor):
    class_token = torch.randn(3, 5)
    expected = []
    for image in range(3):
        cls = class_token[image].double().tolist()
        agreement = [
            naive_mean(sum(c * z for c, z in zip(cls, token)) for token in teacher)
            for teacher in projected[image].double().tolist()
        ]
        shares = naive_softmax([value for index, value in enumerate(agreement) if index != anchor])
        expected.append([0.2 * share for share in shares])
        expected[-1].insert(anchor, 0.8)
    assert_equals_naive(weigh_teachers(class_token, projected, anchor), expected)


def test_teacher_weights_by_hand():
    # Agreements of the two others with the class token 1: 0 and ln 3, so that they share 0.2 as 1 to 3.
    projected = torch.tensor([[5.0, 7.0], [0.0, 0.0], [0.0, 2 * math.log(3)]]).view(1, 3, 2, 1)
    torch.testing.assert_close(weigh_teachers(torch.ones(1, 1), projected, 0), torch.tensor([[0.8, 0.05, 0.15]]))


def test_the_weight_of_a_single_teacher_is_0_8(projected):
    torch.testing.assert_close(weigh_teachers(torch.randn(3, 5), projected[:, :1], 0), torch.full((3, 1), 0.8))


def test_the_teacher_weights_have_a_gradient_except_for_the_anchor(projected):
    projected.requires_grad_()
    weights = weigh_teachers(torch.randn(3, 5), projected, 1)
    (weights * torch.randn(3, 4)).sum().backward()
    assert projected.grad[:, [0, 2, 3]].flatten(2).any(dim=2).all()
    assert not projected.grad[:, 1].any()


def test_the_loss_of_a_teacher_is_the_mean_plus_the_weighted_sum_over_tokens(projected):
    student, weights = torch.randn(3, 6, 5), torch.rand(3, 6).softmax(dim=-1)
    expected = []
    for image in range(3):
        features, shares = student[image].double().tolist(), weights[image].double().tolist()
        expected.append([])
        for teacher in projected[image].double().tolist():
            errors = [naive_mean((s - z) ** 2 for s, z in zip(*tokens)) for tokens in zip(features, teacher)]
            weighted = sum(share * error for share, error in zip(shares, errors))
            expected[-1].append(naive_mean(errors) + weighted)
    assert_equals_naive(move_kd_loss(student, projected, weights), expected)


def test_with_uniform_weights_the_loss_is_twice_the_mean_squared_error(projected):
    student = torch.randn(3, 6, 5)
    loss = move_kd_loss(student, projected, torch.full((3, 6), 1 / 6))
    error = (student.unsqueeze(1) - projected).square().mean(dim=(2, 3))
    torch.testing.assert_close(loss, 2 * error)


def test_the_balance_loss_of_an_image_pools_layers_and_tokens():
    probabilities = torch.randn(2, 3, 5, 4).softmax(dim=-1)  # layers, images, tokens, adapters
    expected = []
    for image in range(3):
        tokens = [token for layer in probabilities.double().tolist() for token in layer[image]]
        expected.append(
            sum(
                naive_mean(token[adapter] for token in tokens)
                * naive_mean(token.index(max(token)) == adapter for token in tokens)
                for adapter in range(4)
            )
        )
    assert_equals_naive(pooled_balance_loss(probabilities), expected)


def test_the_balance_loss_is_not_multiplied_by_the_number_of_adapters():
    # Each of three tokens prefers a different adapter by the same margin; then one is always chosen.
    balanced = (torch.eye(3) * 0.4 + 0.2).view(1, 1, 3, 3)
    torch.testing.assert_close(pooled_balance_loss(balanced), torch.tensor([1 / 3]))
    torch.testing.assert_close(pooled_balance_loss(torch.eye(3)[0].expand(2, 1, 5, 3)), torch.tensor([1.0]))


def test_the_choice_has_no_gradient():
    probabilities = torch.tensor([0.75, 0.25]).expand(1, 1, 4, 2).clone().requires_grad_()
    pooled_balance_loss(probabilities).sum().backward()
    torch.testing.assert_close(probabilities.grad, torch.tensor([1 / 4, 0.0]).expand(1, 1, 4, 2))


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (softmax_of_attention, [(2, 6)]),
        (renormalized_attention, [(2, 6)]),
        (lambda cls, z: weigh_teachers(cls, z, 0), [(2, 8), (2, 3, 6, 8)]),
        (move_kd_loss, [(2, 6, 8), (2, 3, 6, 8), (2, 6)]),
        (pooled_balance_loss, [(2, 3, 5, 4)]),
    ],
)
def test_all_losses_are_computed_in_float32(function, shapes):
    arguments = [torch.rand(shape).bfloat16() for shape in shapes]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = function(*arguments)
    assert result.dtype == torch.float32
    assert torch.equal(result, function(*[argument.float() for argument in arguments]))
