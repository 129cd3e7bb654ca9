"""Bayesian personalised ranking."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def triplet_scores(user: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
    r"""Inner products of users with a positive and with a negative item each,
    :math:`\mathbf{u}^\top \mathbf{y}_i` and :math:`\mathbf{u}^\top \mathbf{y}_j`.

    Args:
        user (torch.Tensor): Vectors of the users, ``[batch_size, channels]``.
        item (torch.Tensor): Vectors of the positive, then of the negative items,
            ``[2 * batch_size, channels]``.

    Returns:
        tuple[torch.Tensor, torch.Tensor]: Two vectors ``[batch_size]``, for :func:`bpr_loss`.
    """
    positive, negative = (user * item.view(2, *user.shape)).sum(-1)
    return positive, negative


def bpr_loss(positive_score: Tensor, negative_score: Tensor, epsilon: float = 0.0) -> Tensor:
    r"""Bayesian personalised ranking (`Rendle et al., 2009 <https://arxiv.org/abs/1205.2618>`_).

    .. math::
        \mathcal{L} = \frac{1}{B} \sum_{(u,i,j)} -\log(\sigma(s_{ui} - s_{uj}) + \epsilon)

    Args:
        positive_score (torch.Tensor): :math:`s_{ui}`, any shape.
        negative_score (torch.Tensor): :math:`s_{uj}`, the same shape.
        epsilon (float, optional): Added inside the logarithm, as some backbones do; at 0 the
            numerically stable form is used. (default: 0)

    Returns:
        torch.Tensor: A scalar.

    Raises:
        ValueError: If the shapes differ.
    """
    if positive_score.shape != negative_score.shape:
        raise ValueError(
            f"'positive_score' and 'negative_score' need the same shape "
            f"(got {list(positive_score.shape)} and {list(negative_score.shape)})"
        )
    difference = positive_score - negative_score
    if epsilon == 0.0:
        return -F.logsigmoid(difference).mean()
    return -(difference.sigmoid() + epsilon).log().mean()


class BPRLoss(nn.Module):
    """Module form of :func:`bpr_loss`."""

    def __init__(self, epsilon: float = 0.0) -> None:
        super().__init__()
        self.epsilon = epsilon

    def forward(self, positive_score: Tensor, negative_score: Tensor) -> Tensor:
        """Compares the scores of positive and negative pairs."""
        return bpr_loss(positive_score, negative_score, self.epsilon)
