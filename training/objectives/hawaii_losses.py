"""HAWAII's losses as functions of tensors (sections 2.3 and 2.4). All are computed in float32."""

import torch


# Shapes: I images, N teachers, m student tokens, D student width, t prompt tokens, L layers, P = 1 + m.


def similarity_scores(
    projected: torch.Tensor, prompt: torch.Tensor, prompt_mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The two parts of the teacher tokens' scores in eq. 5, summed over queries and not yet divided by their number.

    Each query, a teacher token or an instruction token, distributes a softmax over the m teacher tokens. Each part
    therefore sums to the number of its queries.

    Args:
        projected (`torch.FloatTensor` of shape `(num_images, num_teachers, num_tokens, hidden_size)`):
            Teacher tokens projected to the student's width.
        prompt (`torch.FloatTensor` of shape `(num_images, num_prompt_tokens, hidden_size)`):
            Instruction tokens projected to the student's width; there may be none.
        prompt_mask (`torch.BoolTensor` of shape `(num_images, num_prompt_tokens)`):
            False for padding.

    Returns:
        Two `torch.FloatTensor` of shape `(num_images, num_teachers, num_tokens)`: from the teacher's tokens and from
        the instruction.
    """
    projected, prompt = projected.float(), prompt.float()
    width = projected.shape[-1]
    with torch.autocast(projected.device.type, enabled=False):  # autocast would multiply in half precision
        keys = projected.transpose(-1, -2) / width**0.5  # (I, N, D, m)
        from_image = (projected @ keys).softmax(dim=-1).sum(dim=-2)  # (I, N, m)
        from_prompt = (prompt.unsqueeze(1) @ keys).softmax(dim=-1)  # (I, N, t, m)
    return from_image, (from_prompt * prompt_mask[:, None, :, None]).sum(dim=-2)


def token_importance(projected: torch.Tensor, prompt: torch.Tensor, prompt_mask: torch.Tensor) -> torch.Tensor:
    """
    Importance of each teacher token to the other tokens and to the instruction (eq. 5): the mean over all queries, so
    that the scores of a teacher sum to one.

    Args:
        projected, prompt, prompt_mask:
            As for [`similarity_scores`].

    Returns:
        `torch.FloatTensor` of shape `(num_images, num_teachers, num_tokens)`.
    """
    from_image, from_prompt = similarity_scores(projected, prompt, prompt_mask)
    num_queries = projected.shape[-2] + prompt_mask.sum(dim=-1)  # (I,)
    return (from_image + from_prompt) / num_queries[:, None, None]


def fine_grained_loss(student: torch.Tensor, projected: torch.Tensor, importance: torch.Tensor) -> torch.Tensor:
    """
    Error of each forced pass against its teacher, with tokens weighted by importance (eq. 6).

    Args:
        student (`torch.FloatTensor` of shape `(num_images, num_teachers, num_tokens, hidden_size)`):
            Features of the passes with one teacher-specific adapter forced.
        projected (`torch.FloatTensor` of the same shape):
            Teacher tokens projected to the student's width.
        importance (`torch.FloatTensor` of shape `(num_images, num_teachers, num_tokens)`):
            Weights that sum to one over the tokens.

    Returns:
        `torch.FloatTensor` of shape `(num_images, num_teachers)`; eq. 6 is its mean.
    """
    error = (student.float() - projected.float()).square().mean(dim=-1)  # (I, N, m)
    return (importance * error).sum(dim=-1)


def coarse_grained_loss(student: torch.Tensor, summary: torch.Tensor) -> torch.Tensor:
    """
    Error of the routed pass against the summary of all teachers (eq. 4).

    Args:
        student (`torch.FloatTensor` of shape `(num_images, num_tokens, hidden_size)`):
            Features of the routed pass.
        summary (`torch.FloatTensor` of the same shape):
            Projection of all teachers' concatenated channels (eq. 3).

    Returns:
        `torch.FloatTensor` of shape `(num_images,)`; eq. 4 is its mean.
    """
    return (student.float() - summary.float()).square().mean(dim=(-1, -2))


def load_balance_loss(probabilities: torch.Tensor, is_counted: torch.Tensor) -> torch.Tensor:
    """
    Switch Transformer's balance loss of one bank of adapters, `N * sum_e f_e * P_e`, averaged over layers.

    It is 1 if tokens and probabilities are distributed evenly. `f_e` is a share of tokens and has no gradient.

    Args:
        probabilities (`torch.FloatTensor` of shape `(num_layers, num_images, num_tokens, num_adapters)`):
            The router's probabilities; the adapter with the largest was chosen.
        is_counted (`torch.BoolTensor` of shape `(num_images,)`):
            False for images that only fill a batch.

    Returns:
        A scalar `torch.FloatTensor`; zero if no image counts.
    """
    num_adapters = probabilities.shape[-1]
    weight = is_counted.float()
    weight = (weight / weight.sum().clamp(min=1))[:, None]  # (I, 1)
    chosen = torch.nn.functional.one_hot(probabilities.argmax(dim=-1), num_adapters).float()  # (L, I, P, N)
    share = (chosen.mean(dim=2) * weight).sum(dim=1)  # (L, N)
    probability = (probabilities.float().mean(dim=2) * weight).sum(dim=1)  # (L, N)
    return num_adapters * (share * probability).sum(dim=-1).mean()
