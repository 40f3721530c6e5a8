"""AM-RADIO's loss for one teacher as a function of tensors, in float32."""

import torch
import torch.nn.functional as F


COSINE_SHARE, SMOOTH_L1_SHARE = 0.9, 0.1  # AM-RADIO's alpha and beta
# Shapes: I squares, m student tokens, C channels of the teacher.


def radio_loss(predicted: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """
    `0.9 (1 - cosine) + 0.1 smooth-L1` of each token, averaged over tokens; smooth-L1 is a mean over channels.

    Args:
        predicted (`torch.FloatTensor` of shape `(num_squares, num_tokens, channels)`):
            The teacher's head on the student's tokens.
        features (`torch.FloatTensor` of the same shape):
            Features of the teacher.

    Returns:
        `torch.FloatTensor` of shape `(num_squares,)`.
    """
    predicted, features = predicted.float(), features.float()
    cosine = F.cosine_similarity(predicted, features, dim=-1)  # (I, m)
    smooth_l1 = F.smooth_l1_loss(predicted, features, reduction="none").mean(dim=-1)  # (I, m)
    return (COSINE_SHARE * (1 - cosine) + SMOOTH_L1_SHARE * smooth_l1).mean(dim=-1)
