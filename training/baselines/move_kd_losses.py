"""
MoVE-KD's losses as functions of tensors, including its peculiarities, and two repairs. All are computed in float32.
"""

import torch
import torch.nn.functional as F


ANCHOR_SHARE = 0.8  # of the teachers' weights, for every image
# Shapes: I images, N teachers, m student tokens, D student width, L layers, P = m and the class token, E adapters.


def softmax_of_attention(class_attention: torch.Tensor) -> torch.Tensor:
    """
    Token weights of MoVE-KD: a softmax over attention weights, hence nearly uniform.

    Args:
        class_attention (`torch.FloatTensor` of shape `(num_images, num_tokens)`):
            Attention of the class token to each patch, averaged over heads.

    Returns:
        `torch.FloatTensor` of the same shape; the tokens of an image sum to one.
    """
    return class_attention.float().softmax(dim=-1)


def renormalized_attention(class_attention: torch.Tensor) -> torch.Tensor:
    """The first repair: the attention to the patches itself, rescaled to sum to one. Shapes as above."""
    class_attention = class_attention.float()
    return class_attention / class_attention.sum(dim=-1, keepdim=True)


def weigh_teachers(class_token: torch.Tensor, projected: torch.Tensor, anchor: int) -> torch.Tensor:
    """
    Weights of the teachers: fixed for the anchor; the others share the rest by a softmax of the agreement of their
    tokens with its class token, `mean_j CLS . z_tj`. The gradient flows into the adapters; the second repair detaches
    the result.

    Args:
        class_token (`torch.FloatTensor` of shape `(num_images, hidden_size)`):
            Class token of the anchor.
        projected (`torch.FloatTensor` of shape `(num_images, num_teachers, num_tokens, hidden_size)`):
            Teacher tokens at the student's width, z.
        anchor (`int`):
            Index of the anchor.

    Returns:
        `torch.FloatTensor` of shape `(num_images, num_teachers)`; the weights of an image sum to one, unless
        the anchor is the only teacher.
    """
    agreement = (class_token.float().unsqueeze(1) * projected.float().mean(dim=2)).sum(dim=-1)  # (I, N)
    fixed = torch.full_like(agreement[:, :1], ANCHOR_SHARE)
    others = torch.cat([agreement[:, :anchor], agreement[:, anchor + 1 :]], dim=1).softmax(dim=1) * (1 - ANCHOR_SHARE)
    return torch.cat([others[:, :anchor], fixed, others[:, anchor:]], dim=1)


def move_kd_loss(student: torch.Tensor, projected: torch.Tensor, token_weights: torch.Tensor) -> torch.Tensor:
    """
    `L_t = mean_j mse_tj + sum_j w_j mse_tj` of each teacher; mse is a mean over channels.

    Args:
        student (`torch.FloatTensor` of shape `(num_images, num_tokens, hidden_size)`):
            The student's features.
        projected (`torch.FloatTensor` of shape `(num_images, num_teachers, num_tokens, hidden_size)`):
            Teacher tokens at the student's width.
        token_weights (`torch.FloatTensor` of shape `(num_images, num_tokens)`):
            The same for all teachers.

    Returns:
        `torch.FloatTensor` of shape `(num_images, num_teachers)`.
    """
    error = (student.float().unsqueeze(1) - projected.float()).square().mean(dim=-1)  # (I, N, m)
    return error.mean(dim=-1) + (token_weights.unsqueeze(1) * error).sum(dim=-1)


def pooled_balance_loss(probabilities: torch.Tensor) -> torch.Tensor:
    """
    `sum_e mean(p_e) * mean(onehot_e)` of each image, pooled over layers and tokens: `1 / E` if all E adapters are
    chosen equally often. The choice has no gradient.

    Args:
        probabilities (`torch.FloatTensor` of shape `(num_layers, num_images, num_tokens, num_adapters)`):
            The router's probabilities; the adapter with the largest was chosen.

    Returns:
        `torch.FloatTensor` of shape `(num_images,)`.
    """
    probabilities = probabilities.float()
    chosen = F.one_hot(probabilities.argmax(dim=-1), probabilities.shape[-1]).float()  # (L, I, P, E)
    return (probabilities.mean(dim=(0, 2)) * chosen.mean(dim=(0, 2))).sum(dim=-1)
