"""Heads that predict the teachers' features from the student's tokens, with AM-RADIO's loss."""

import torch
import torch.nn.functional as F
from torch import nn

from .projections import Projection


COSINE_SHARE, SMOOTH_L1_SHARE = 0.9, 0.1  # AM-RADIO's alpha and beta
# Shapes: I squares, m student tokens, D student width, C channels of a teacher, matched, N teachers.


def feature_loss(predicted: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """
    AM-RADIO's loss for one teacher, in float32: `0.9 (1 - cosine) + 0.1 smooth-L1` of each token, averaged over
    tokens; smooth-L1 is a mean over channels.

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


class FeatureHeads(nn.ModuleDict):
    """
    One head for each teacher, because their channels differ. The heads transform the student's tokens and cannot
    make the targets easier, so they learn in every stage, whatever `trainable` is.

    Args:
        keys (`list[str]`):
            For each teacher the name from [`module_keys`].
        width (`int`):
            Width of the student's tokens.
        channels (`list[int]`):
            Channels of each teacher's features on the student's grid.
    """

    def __init__(self, keys: list[str], width: int, channels: list[int]):
        super().__init__({key: Projection(width, number) for key, number in zip(keys, channels, strict=True)})

    def forward(self, tokens: torch.Tensor, matched: list[torch.Tensor], weight: torch.Tensor) -> torch.Tensor:
        """
        Args:
            tokens (`torch.FloatTensor` of shape `(num_squares, num_tokens, width)`):
                The student's.
            matched (`list[torch.FloatTensor]`):
                Each teacher's features as the student's tokens, `(num_squares, num_tokens, channels)`, normalised.
            weight (`torch.FloatTensor` of shape `(num_squares,)`):
                Weight of each square, see [`weigh_images`].

        Returns:
            The weighted loss of each teacher, `(num_teachers,)`.
        """
        tokens = tokens.to(matched[0].dtype)  # the dtype of the heads
        losses = [feature_loss(head(tokens), features) for head, features in zip(self.values(), matched)]
        return (torch.stack(losses) * weight).sum(dim=-1)
