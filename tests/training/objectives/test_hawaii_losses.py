"""The losses equal equations 4 to 6 and the balance loss of Switch Transformer."""

import math

import pytest
import torch

from hawaii.tests.naive import assert_equals_naive, naive_importance
from hawaii.training.objectives.hawaii_losses import (
    coarse_grained_loss,
    fine_grained_loss,
    load_balance_loss,
    similarity_scores,
    token_importance,
)


def naive_mean_squared_error(student, teacher):
    """Squared error of one token, averaged over channels."""
    return sum((s - t) ** 2 for s, t in zip(student, teacher)) / len(student)


@pytest.fixture
def projected():
    return torch.randn(3, 2, 4, 5)  # images, teachers, tokens, width


@pytest.fixture
def prompt():
    return torch.randn(3, 6, 5)


@pytest.fixture
def prompt_mask():
    return torch.tensor([[True] * 6, [True] * 2 + [False] * 4, [False] * 6])


def test_importance_is_equation_5(projected, prompt, prompt_mask):
    expected = [
        [naive_importance(projected[i, n].tolist(), prompt[i][prompt_mask[i]].tolist()) for n in range(2)]
        for i in range(3)
    ]
    assert_equals_naive(token_importance(projected, prompt, prompt_mask), expected)


def test_importance_of_two_tokens_by_hand():
    # Logits of the queries 0 and ln 3: (0, 0) and (0, (ln 3)^2); of the prompt's query 1: (0, ln 3), so 1/4 and 3/4.
    teacher = torch.tensor([0.0, math.log(3)]).view(1, 1, 2, 1)
    share = 1 / (1 + math.exp(math.log(3) ** 2))
    scores = token_importance(teacher, torch.ones(1, 1, 1), torch.ones(1, 1, dtype=torch.bool))
    torch.testing.assert_close(scores[0, 0, 0], torch.tensor((1 / 2 + share + 1 / 4) / 3))


def test_scores_differ_because_the_softmax_is_over_keys(projected, prompt, prompt_mask):
    assert token_importance(projected, prompt, prompt_mask).std(dim=-1).min() > 0.01


def test_scores_are_positive_and_sum_to_one(projected, prompt, prompt_mask):
    scores = token_importance(projected, prompt, prompt_mask)
    assert scores.min() > 0
    torch.testing.assert_close(scores.sum(dim=-1), torch.ones(3, 2))


def test_scores_of_the_tokens_and_of_the_instruction_are_separate(projected, prompt, prompt_mask):
    from_image, from_prompt = similarity_scores(projected, prompt, prompt_mask)
    alone = torch.empty(3, 0, 5), torch.empty(3, 0, dtype=torch.bool)
    torch.testing.assert_close(from_image / 4, token_importance(projected, *alone))
    num_prompt_queries = prompt_mask.sum(dim=-1)
    torch.testing.assert_close(from_prompt.sum(dim=-1), num_prompt_queries[:, None].expand(3, 2).float())
    mean = (from_image + from_prompt) / (4 + num_prompt_queries)[:, None, None]
    assert torch.equal(mean, token_importance(projected, prompt, prompt_mask))


def test_equal_tokens_have_equal_scores():
    scores = token_importance(torch.ones(1, 1, 8, 3), torch.randn(1, 2, 3), torch.ones(1, 2, dtype=torch.bool))
    torch.testing.assert_close(scores, torch.full((1, 1, 8), 1 / 8))


def test_padded_queries_are_ignored(projected, prompt, prompt_mask):
    scores = token_importance(projected, prompt, prompt_mask)
    other = torch.where(prompt_mask.unsqueeze(-1), prompt, 100 * torch.randn(prompt.shape))
    assert torch.equal(token_importance(projected, other, prompt_mask), scores)
    torch.testing.assert_close(token_importance(projected[1:2], prompt[1:2, :2], prompt_mask[1:2, :2]), scores[1:2])


def test_without_an_instruction_only_teacher_tokens_are_queries(projected):
    scores = token_importance(projected, torch.empty(3, 0, 5), torch.empty(3, 0, dtype=torch.bool))
    expected = [[naive_importance(projected[i, n].tolist(), []) for n in range(2)] for i in range(3)]
    assert_equals_naive(scores, expected)


def test_importance_is_computed_in_float32_under_autocast(projected, prompt, prompt_mask):
    scores = token_importance(projected, prompt, prompt_mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(token_importance(projected, prompt, prompt_mask), scores)


def test_the_fine_grained_loss_is_equation_6_of_each_teacher(projected):
    student, importance = torch.randn(projected.shape), torch.rand(3, 2, 4)
    expected = [
        [
            sum(
                importance[i, n, j].item()
                * naive_mean_squared_error(student[i, n, j].tolist(), projected[i, n, j].tolist())
                for j in range(4)
            )
            for n in range(2)
        ]
        for i in range(3)
    ]
    assert_equals_naive(fine_grained_loss(student, projected, importance), expected)


def test_only_important_tokens_count():
    student, teacher = torch.zeros(1, 1, 2, 1), torch.tensor([1.0, 3.0]).view(1, 1, 2, 1)
    loss = fine_grained_loss(student, teacher, torch.tensor([[[1.0, 0.0]]]))
    torch.testing.assert_close(loss, torch.tensor([[1.0]]))


def test_with_even_importance_the_fine_grained_loss_is_the_mean_squared_error(projected):
    student = torch.randn(projected.shape)
    loss = fine_grained_loss(student, projected, torch.full((3, 2, 4), 1 / 4))
    torch.testing.assert_close(loss.mean(), torch.nn.functional.mse_loss(student, projected))


def test_the_coarse_grained_loss_is_equation_4_of_each_image():
    student, summary = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    expected = [
        sum(naive_mean_squared_error(student[i, j].tolist(), summary[i, j].tolist()) for j in range(4)) / 4
        for i in range(3)
    ]
    assert_equals_naive(coarse_grained_loss(student, summary), expected)


def test_the_losses_are_computed_in_float32():
    student, teacher = torch.randn(1, 1, 8, 8).bfloat16(), torch.randn(1, 1, 8, 8).bfloat16()
    loss = fine_grained_loss(student, teacher, torch.full((1, 1, 8), 1 / 8))
    assert loss.dtype == torch.float32
    assert torch.equal(loss, fine_grained_loss(student.float(), teacher.float(), torch.full((1, 1, 8), 1 / 8)))
    assert torch.equal(
        coarse_grained_loss(student[0], teacher[0]), coarse_grained_loss(student[0].float(), teacher[0].float())
    )


def naive_balance(probabilities, is_counted):
    """`N * sum_e f_e * P_e` over the tokens of counted images, averaged over layers."""
    total = 0.0
    for layer in probabilities:
        tokens = [token for image, counts in zip(layer, is_counted) if counts for token in image]
        num_adapters = len(tokens[0])
        for adapter in range(num_adapters):
            share = sum(token.index(max(token)) == adapter for token in tokens) / len(tokens)
            mean = sum(token[adapter] for token in tokens) / len(tokens)
            total += num_adapters * share * mean
    return total / len(probabilities)


def test_the_balance_loss_is_switch_transformers_averaged_over_layers():
    probabilities = torch.randn(2, 3, 5, 4).softmax(dim=-1)
    is_counted = torch.tensor([True, False, True])
    expected = naive_balance(probabilities.tolist(), is_counted.tolist())
    assert_equals_naive(load_balance_loss(probabilities, is_counted), expected)


def test_the_balance_loss_is_one_if_balanced():
    # Each of three tokens prefers a different adapter by the same margin.
    probabilities = (torch.eye(3) * 0.4 + 0.2).view(1, 1, 3, 3)
    torch.testing.assert_close(load_balance_loss(probabilities, torch.tensor([True])), torch.tensor(1.0))


def test_the_balance_loss_is_the_number_of_adapters_if_one_is_always_chosen():
    probabilities = torch.eye(3)[0].expand(2, 2, 5, 3)
    torch.testing.assert_close(load_balance_loss(probabilities, torch.tensor([True, True])), torch.tensor(3.0))


def test_the_balance_loss_ignores_images_that_only_fill_the_batch():
    probabilities = torch.randn(2, 3, 5, 4).softmax(dim=-1)
    loss = load_balance_loss(probabilities, torch.tensor([True, True, False]))
    torch.testing.assert_close(loss, load_balance_loss(probabilities[:, :2], torch.tensor([True, True])))


def test_the_balance_loss_without_images_is_zero():
    probabilities = torch.randn(2, 1, 5, 4, requires_grad=True)
    loss = load_balance_loss(probabilities.softmax(dim=-1), torch.tensor([False]))
    loss.backward()
    assert loss == 0
    assert torch.equal(probabilities.grad, torch.zeros_like(probabilities))


def test_the_share_of_tokens_has_no_gradient():
    # Only the mean probabilities have one. If all tokens choose the first of two adapters: d/dp 2 (1 * P_0 + 0 * P_1).
    probabilities = torch.tensor([0.75, 0.25]).expand(1, 1, 4, 2).clone().requires_grad_()
    load_balance_loss(probabilities, torch.tensor([True])).backward()
    torch.testing.assert_close(probabilities.grad, torch.tensor([2 / 4, 0.0]).expand(1, 1, 4, 2))
